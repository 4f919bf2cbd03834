package peer

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience bounds every single step: a script never hangs, it says "timeout".
const patience = 60 * time.Second

// A script is what one end of a TCP connection does, one step after the other:
//
//	send:TEXT     send the text (with Go's escapes) in one write
//	dribble:TEXT  send it one byte for each write
//	recv:N        receive exactly N bytes and print them
//	line          receive up to a newline and print it
//	head          receive up to an empty line and print it
//	eof           receive to the end and print what came and how it ended
//	pump:N        send N bytes of a fixed random series (K and M are known)
//	sum[:N]       receive N bytes, or all, and print their count and SHA-256
//	fin           shut down the sending half
//	rst           reset the connection
//	close         close it
//	touch:FILE    tell the other end, or the test, that this step was reached
//	await:FILE    wait until the file is there
//
// What it prints holds no address and no time: two runs compare with ==.
type script struct {
	conn *net.TCPConn
	in   *bufio.Reader
	out  io.Writer
}

// errEnded ends a script whose connection was closed by one of its own steps.
var errEnded = errors.New("ended")

func (s *script) run(steps []string) error {
	for _, step := range steps {
		verb, arg, _ := strings.Cut(step, ":")
		if err := s.conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if err := s.step(verb, arg); err != nil {
			if errors.Is(err, errEnded) {
				return nil
			}
			fmt.Fprintf(s.out, "%s: %s\n", verb, word(err))
			return err
		}
	}
	return s.conn.Close()
}

func (s *script) step(verb, arg string) error {
	switch verb {
	case "send", "dribble":
		return s.send(verb, arg)
	case "recv", "line", "head", "eof":
		return s.receive(verb, arg)
	case "pump":
		n, err := size(arg)
		if err != nil {
			return err
		}
		_, err = io.Copy(s.conn, io.LimitReader(series(), n))
		return err
	case "sum":
		return s.sum(arg)
	case "fin":
		return s.conn.CloseWrite()
	case "rst":
		s.conn.SetLinger(0)
		s.conn.Close()
		return errEnded
	case "close":
		s.conn.Close()
		return errEnded
	case "touch":
		return os.WriteFile(arg, nil, 0o666)
	case "await":
		return await(arg)
	}
	return fmt.Errorf("no such step")
}

func (s *script) send(verb, arg string) error {
	text, err := strconv.Unquote(`"` + strings.ReplaceAll(arg, `"`, `\"`) + `"`)
	if err != nil {
		return fmt.Errorf("%q: %w", arg, err)
	}
	if verb == "send" {
		_, err = io.WriteString(s.conn, text)
		return err
	}
	for i := range len(text) {
		if _, err := io.WriteString(s.conn, text[i:i+1]); err != nil {
			return err
		}
		time.Sleep(time.Millisecond) // pacing: a segment for each byte
	}
	return nil
}

func (s *script) receive(verb, arg string) error {
	var got []byte
	var err error
	switch verb {
	case "recv":
		n, convErr := strconv.Atoi(arg)
		if convErr != nil {
			return convErr
		}
		got = make([]byte, n)
		n, err = io.ReadFull(s.in, got)
		got = got[:n]
	case "line":
		got, err = s.in.ReadBytes('\n')
	case "head":
		for err == nil && !strings.HasSuffix(string(got), "\r\n\r\n") {
			var b byte
			if b, err = s.in.ReadByte(); err == nil {
				got = append(got, b)
			}
		}
	case "eof":
		if got, err = io.ReadAll(s.in); err == nil {
			fmt.Fprintf(s.out, "received %q, then eof\n", got)
			return nil
		}
	}
	if len(got) > 0 || err == nil {
		fmt.Fprintf(s.out, "received %q\n", got)
	}
	return err
}

func (s *script) sum(arg string) error {
	var from io.Reader = s.in
	if arg != "" {
		n, err := size(arg)
		if err != nil {
			return err
		}
		from = io.LimitReader(from, n)
	}
	hash := sha256.New()
	n, err := io.Copy(hash, deadlined{from, s.conn})
	if err != nil {
		fmt.Fprintf(s.out, "received some bytes\n")
		return err
	}
	fmt.Fprintf(s.out, "received %d bytes, sha256 %s\n", n, hex.EncodeToString(hash.Sum(nil)))
	return nil
}

// deadlined gives each read its own patience, so that only a stall times out.
type deadlined struct {
	io.Reader
	conn *net.TCPConn
}

func (d deadlined) Read(p []byte) (int, error) {
	d.conn.SetDeadline(time.Now().Add(patience))
	return d.Reader.Read(p)
}

// series is the fixed random byte series that pump sends.
func series() io.Reader { return rand.NewChaCha8([32]byte{'t', 'u', 'l', 'l', 'e'}) }

func size(s string) (int64, error) {
	unit := int64(1)
	if t, ok := strings.CutSuffix(s, "K"); ok {
		s, unit = t, 1<<10
	} else if t, ok := strings.CutSuffix(s, "M"); ok {
		s, unit = t, 1<<20
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n * unit, err
}

func await(file string) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if _, err := os.Stat(file); err == nil {
			return nil
		}
	}
	return os.ErrDeadlineExceeded
}

// word names an error the same way on every run: a write into a connection
// that was reset is EPIPE or ECONNRESET by chance.
func word(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && !dns.IsTimeout:
		return "no such name"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "eof"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	}
	return err.Error()
}

// serve plays a script on each connection to a port: serve [-n COUNT] ADDR STEP…
// It says "listening" on stderr, and with -n ends after that many connections.
func serve(args []string) int {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	count := flags.Int("n", 0, "connections to serve; 0: no end")
	if flags.Parse(args) != nil || flags.NArg() < 1 {
		return 2
	}
	l, err := net.Listen("tcp", flags.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stderr, "listening")
	var all sync.WaitGroup
	var printing sync.Mutex
	for i := 0; *count == 0 || i < *count; i++ {
		conn, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		all.Go(func() {
			var transcript strings.Builder
			s := script{conn: conn.(*net.TCPConn), in: bufio.NewReader(conn), out: &transcript}
			s.run(flags.Args()[1:])
			conn.Close()
			printing.Lock()
			defer printing.Unlock()
			os.Stdout.WriteString(transcript.String())
		})
	}
	all.Wait()
	return 0
}

// dial connects and plays a script: dial ADDR STEP… Its exit code is 1 if the
// connection could not be made or a step went wrong.
func dial(args []string) int {
	if len(args) < 1 {
		return 2
	}
	conn, err := net.DialTimeout("tcp", args[0], patience)
	if err != nil {
		fmt.Println("dial:", word(err))
		return 1
	}
	defer conn.Close()
	s := script{conn: conn.(*net.TCPConn), in: bufio.NewReader(conn), out: os.Stdout}
	if s.run(args[1:]) != nil {
		return 1
	}
	return 0
}
