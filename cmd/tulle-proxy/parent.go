package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxToken is more than any token has, in bytes.
const maxToken = 16 << 10

// inherited returns a file that the parent left open. Where the kernel can
// tell (sockets, pipes), waiting for it can be cut short.
func inherited(fd int, name string) (*os.File, error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return nil, fmt.Errorf("file %d is not open: %w", fd, err)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil { // so that it takes deadlines
		return nil, fmt.Errorf("file %d: %w", fd, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// tokenSource asks the parent for join tokens: a line "token", answered by a line.
type tokenSource struct {
	mu    sync.Mutex // serialises get
	file  *os.File
	lines *bufio.Reader // nil while no answer is due: hours pass between two
	owed  bool          // an answer is due to somebody who has given up
}

// tokens returns what gets a join token from the parent on fd.
func tokens(fd int) (func(context.Context) (string, error), error) {
	file, err := inherited(fd, "token-fd")
	if err != nil {
		return nil, err
	}
	return (&tokenSource{file: file}).get, nil
}

var errNoParent = errors.New("whoever started this proxy is gone, and with it the join tokens")

// get asks and waits for the answer, or until ctx ends.
func (s *tokenSource) get(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	_ = s.file.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	token, err := s.ask()
	switch {
	case ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded):
		return "", ctx.Err()
	case errors.Is(err, io.EOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return "", errNoParent
	case err != nil:
		return "", err
	case token == "":
		return "", errors.New("the answer was empty")
	}
	return token, nil
}

// ask has one question under way at most, however long the control plane is
// away: when it is back, a hundred tokens would be no better than one. An answer
// that came long ago is a token that has run out, and costs one attempt.
func (s *tokenSource) ask() (string, error) {
	if s.lines == nil {
		s.lines = bufio.NewReaderSize(s.file, maxToken)
	}
	if !s.owed {
		if _, err := io.WriteString(s.file, "token\n"); err != nil {
			return "", err
		}
		s.owed = true
	}
	line, err := s.lines.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	s.owed = false
	token := strings.TrimSpace(string(line))
	if s.lines.Buffered() == 0 {
		s.lines = nil
	}
	return token, nil
}

// readiness returns what tells the parent on fd, once, that traffic is served.
func readiness(fd int) (func(), error) {
	if fd < 0 {
		return func() {}, nil
	}
	file, err := inherited(fd, "ready-fd")
	if err != nil {
		return nil, err
	}
	return func() {
		_, _ = io.WriteString(file, "ready\n")
		_ = file.Close()
	}, nil
}
