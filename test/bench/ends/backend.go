package ends

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// Large is the path whose answer has 16 KB; any other has 256 bytes.
const Large = "/16k"

var (
	smallAnswer = httpAnswer(256)
	largeAnswer = httpAnswer(16 << 10)
)

func httpAnswer(size int) []byte {
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", size)
	return append([]byte(head), bytes.Repeat([]byte("x"), size)...)
}

// The first byte that a TCP client sends says what it wants. Neither is how a
// protocol that a proxy might look for begins.
const (
	wantEcho = 0x00 // everything back
	wantBulk = 0x01 // bytes without end
)

// runBackend answers HTTP, gRPC and TCP, each on its port.
func runBackend([]string) error {
	errs := make(chan error)
	for port, each := range map[int]func(net.Conn){HTTPPort: answerHTTP, GRPCPort: answerGRPC, TCPPort: answerTCP} {
		go func() { errs <- serve(port, each) }()
	}
	return <-errs
}

// serve reads and writes as the proxy does (proxy/tcp): system calls that Go's
// scheduler hears of wake its monitor, whose timer of 20 us takes a virtual
// machine longer than a whole request, now and then for minutes on end.
func serve(port int, each func(net.Conn)) error {
	listener, err := tcp.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	for {
		accepted, err := listener.AcceptTCP()
		if err != nil {
			return err
		}
		conn, err := tcp.New(accepted)
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = conn.Close() }()
			each(conn)
		}()
	}
}

// answerHTTP answers each blank line, which ends a request without a body.
func answerHTTP(conn net.Conn) {
	const end = "\r\n\r\n"
	buffer := make([]byte, 4096)
	answer := smallAnswer
	for matched := 0; ; {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		// A client asks for one size only, and its requests come in one piece.
		if bytes.HasPrefix(buffer[:n], []byte("GET "+Large)) {
			answer = largeAnswer
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

func answerTCP(conn net.Conn) {
	buffer := make([]byte, 2048)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		if buffer[0] == wantBulk {
			pour(conn)
			return
		}
		if _, err := conn.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// pour sends until nobody wants it.
func pour(conn net.Conn) {
	chunk := make([]byte, 128<<10)
	for {
		if _, err := conn.Write(chunk); err != nil {
			return
		}
	}
}

// runIdle is a workload that does nothing: its namespace is what is wanted.
func runIdle([]string) error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
	return nil
}
