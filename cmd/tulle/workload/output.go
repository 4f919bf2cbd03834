package workload

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
)

// maxLog is how large a log grows before it becomes LOG.1 and a new one is
// begun: a replica's output takes at most twice that.
const maxLog = 8 << 20

// Log is a file of bounded size. Many goroutines may write to it.
type Log struct {
	path string
	max  int64

	mu   sync.Mutex
	file *os.File
	size int64
}

// OpenLog begins a new log at path.
func OpenLog(path string) (*Log, error) {
	l := &Log{path: path, max: maxLog}
	if err := l.openLocked(); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return l, nil
}

func (l *Log) openLocked() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err == nil {
		l.file, l.size = f, 0
	}
	return err
}

// Write appends p. A full disk loses output, but never stops the workload.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return 0, os.ErrClosed
	}
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		_ = l.file.Close()
		_ = os.Rename(l.path, l.path+".1")
		if err := l.openLocked(); err != nil {
			l.file = nil
			return 0, err
		}
	}
	n, _ := l.file.Write(p)
	l.size += int64(n)
	return len(p), nil
}

// Close ends the log.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// prefixer writes whole lines with a prefix, and shares its lock with all
// prefixers of one output, so that lines of different replicas never mix.
type prefixer struct {
	mu     *sync.Mutex
	out    io.Writer
	prefix []byte
	rest   []byte // an unfinished line
}

// maxLine is how long an unfinished line may get before it is written anyway.
const maxLine = 16 << 10

func (p *prefixer) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		i := bytes.IndexByte(p.rest, '\n')
		if i < 0 && len(p.rest) < maxLine {
			return len(b), nil
		}
		line := p.rest
		if i >= 0 {
			line = p.rest[:i]
		}
		p.emit(line)
		p.rest = append(p.rest[:0], p.rest[min(len(line)+1, len(p.rest)):]...)
	}
}

func (p *prefixer) emit(line []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// One write, so that whoever reads the output gets lines.
	_, _ = p.out.Write(append(append(append([]byte(nil), p.prefix...), line...), '\n'))
}

// flush writes a last line that had no end.
func (p *prefixer) flush() {
	if len(p.rest) > 0 {
		p.emit(p.rest)
		p.rest = nil
	}
}

// drain gives a process a file to write to, whose content goes to w. A process
// is given w itself where w is a file: then it may be a terminal.
func drain(w io.Writer, wg *sync.WaitGroup) (file *os.File, release func(), err error) {
	if f, ok := w.(*os.File); ok {
		return f, func() {}, nil
	}
	r, pw, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	wg.Go(func() {
		_, _ = io.Copy(w, r)
		// A reader that has gone must not stop the process by a full pipe.
		_, _ = io.Copy(io.Discard, r)
		_ = r.Close()
		if p, ok := w.(*prefixer); ok {
			p.flush()
		}
	})
	return pw, func() { _ = pw.Close() }, nil
}
