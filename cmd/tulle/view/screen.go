package view

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/term"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

// isTerminal tells whether somebody looks at what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// colours tells whether to use them: only on a terminal, and not where the
// user asked for none (https://no-color.org).
func colours(env *command.Env) bool {
	return isTerminal(env.Stdout) && env.Getenv("NO_COLOR") == "" && env.Getenv("TERM") != "dumb"
}

// screen shows successive drawings: over each other on a terminal, one after
// the other elsewhere.
type screen struct {
	out      io.Writer
	terminal bool
	again    bool // more than one drawing is to come
	drawn    int
}

func (s *screen) draw(draw func(io.Writer) error) error {
	var b bytes.Buffer
	if err := draw(&b); err != nil {
		return err
	}
	if s.again {
		s.place(&b)
	}
	s.drawn++
	_, err := s.out.Write(b.Bytes())
	return err
}

// place makes the drawing overwrite the one before it, line by line rather
// than by clearing first, which would flicker.
func (s *screen) place(b *bytes.Buffer) {
	if !s.terminal {
		if s.drawn > 0 {
			text := slices.Concat([]byte("\n"), b.Bytes())
			b.Reset()
			b.Write(text)
		}
		return
	}
	height := 1 << 20
	if f, ok := s.out.(*os.File); ok {
		if _, h, err := term.GetSize(int(f.Fd())); err == nil && h > 1 {
			height = h
		}
	}
	lines := bytes.Split(bytes.TrimSuffix(b.Bytes(), []byte("\n")), []byte("\n"))
	var placed bytes.Buffer
	if s.drawn == 0 {
		placed.WriteString("\x1b[2J")
	}
	placed.WriteString("\x1b[H")
	for i, line := range lines {
		if i == height-1 { // a further line would scroll
			break
		}
		fmt.Fprintf(&placed, "%s\x1b[K\n", line)
	}
	placed.WriteString("\x1b[J")
	*b = placed
}
