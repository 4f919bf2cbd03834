package ends

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// runHold opens connections, uses each once, says "holding", and keeps them
// until its standard input ends.
func runHold(args []string) error {
	flags := flag.NewFlagSet("hold", flag.ContinueOnError)
	count := flags.Int("connections", 1000, "how many")
	kind := flags.String("kind", "tcp", "tcp: echo some bytes; http: one request; grpc: one call; dial: only connect, an error is no failure")
	atOnce := flags.Int("at-once", 32, "how many are opened at a time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	use := map[string]func(net.Conn) error{"tcp": useTCP, "http": useHTTP, "grpc": useGRPC}[*kind]
	var (
		slots = make(chan struct{}, *atOnce)
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns []net.Conn
		errs  []error
	)
	for i := range *count {
		addr := flags.Arg(i % flags.NArg())
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
			if *kind == "dial" {
				return
			}
			if err == nil {
				err = use(conn)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			conns = append(conns, conn)
		})
	}
	wg.Wait()
	if len(errs) > 0 {
		return fmt.Errorf("%d of %d connections failed, the first with: %w", len(errs), *count, errs[0])
	}
	fmt.Println("holding")
	_, err := io.Copy(io.Discard, os.Stdin)
	for _, conn := range conns {
		conn.Close()
	}
	return err
}

// echoed is what a TCP client sends and wants back.
var echoed = append([]byte{wantEcho}, bytes.Repeat([]byte("\xffbench echo"), 20)[:199]...)

func useTCP(conn net.Conn) error {
	if _, err := conn.Write(echoed); err != nil {
		return err
	}
	got := make([]byte, len(echoed))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, echoed) {
		return errors.New("the echo differs")
	}
	return nil
}

func useHTTP(conn net.Conn) error {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err
}
