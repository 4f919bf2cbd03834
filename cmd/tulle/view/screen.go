package view

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"unicode/utf8"

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

// clip cuts a line that would be broken into two, which would be drawn over no more.
// Colours take no room, and the last one is ended.
func clip(line []byte, width int) []byte {
	if utf8.RuneCount(line) <= width { // colours or not
		return line
	}
	room := width
	for i := 0; i < len(line); {
		if line[i] == 0x1b {
			if end := bytes.IndexByte(line[i:], 'm'); end >= 0 {
				i += end + 1
				continue
			}
		}
		if room--; room < 0 {
			return append(bytes.Clone(line[:i]), "\x1b[0m"...)
		}
		_, n := utf8.DecodeRune(line[i:])
		i += n
	}
	return line
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
	width, height := 1<<20, 1<<20
	if f, ok := s.out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 1 {
			width, height = w, h
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
		fmt.Fprintf(&placed, "%s\x1b[K\n", clip(line, width))
	}
	placed.WriteString("\x1b[J")
	*b = placed
}
