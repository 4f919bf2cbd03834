package main

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
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// answer is what the backend says to every request.
var answer = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 256\r\n\r\n" + string(bytes.Repeat([]byte("x"), 256)))

// runBackend answers every HTTP request with the same 256 bytes, and echoes on
// another port. It is as small as it can be, so that little of the machine goes
// to what is not measured.
func runBackend([]string) error {
	errs := make(chan error)
	serve := func(port int, each func(net.Conn)) {
		listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			errs <- err
			return
		}
		for {
			conn, err := listener.Accept()
			if err != nil {
				errs <- err
				return
			}
			go func() {
				defer conn.Close()
				each(conn)
			}()
		}
	}
	go serve(httpPort, answerAll)
	go serve(echoPort, func(conn net.Conn) {
		buffer := make([]byte, 2048)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			if _, err := conn.Write(buffer[:n]); err != nil {
				return
			}
		}
	})
	return <-errs
}

// answerAll answers each blank line, which ends a request without a body.
func answerAll(conn net.Conn) {
	const end = "\r\n\r\n"
	buffer := make([]byte, 2048)
	for matched := 0; ; {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		for _, b := range buffer[:n] {
			switch {
			case b == end[matched]:
				matched++
			case b == end[0]:
				matched = 1
			default:
				matched = 0
			}
			if matched == len(end) {
				matched = 0
				if _, err := conn.Write(answer); err != nil {
					return
				}
			}
		}
	}
}

// runHold opens connections, uses each once, says "holding", and keeps them
// until its standard input ends.
func runHold(args []string) error {
	flags := flag.NewFlagSet("hold", flag.ContinueOnError)
	count := flags.Int("connections", 1000, "how many")
	kind := flags.String("kind", "tcp", "tcp: echo some bytes; http: one request; dial: only connect, an error is no failure")
	atOnce := flags.Int("at-once", 32, "how many are opened at a time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	use := map[string]func(net.Conn) error{"tcp": useEcho, "http": useHTTP}[*kind]
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

func useEcho(conn net.Conn) error {
	// Not the beginning of anything that a proxy could take for a protocol.
	message := []byte("\x00\x01bench echo\xff\n")
	if _, err := conn.Write(message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, message) {
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

// runIdle is a workload that does nothing: its namespace is what is wanted.
func runIdle([]string) error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
	return nil
}
