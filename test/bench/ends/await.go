package ends

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// runAwait starts a program, prints how many microseconds it took until
// somebody listened at an address, and ends it.
//
//	await ADDRESS PROGRAM [ARGUMENT...]
func runAwait(args []string) error {
	if len(args) < 2 {
		return errors.New("await: wants an address and a program")
	}
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	for {
		conn, err := net.Dial("tcp", args[0])
		if err == nil {
			fmt.Println(time.Since(began).Microseconds())
			return conn.Close()
		}
		if time.Since(began) > 20*time.Second {
			return fmt.Errorf("%s: %w", args[1], err)
		}
		time.Sleep(time.Millisecond)
	}
}
