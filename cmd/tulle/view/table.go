package view

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// tone is how a cell stands out on a terminal.
type tone int

const (
	plain tone = iota
	good
	warning
	bad
	faint
	strong
)

var toneCodes = map[tone]string{good: "32", warning: "33", bad: "31", faint: "2", strong: "1"}

// paint colours the text, which must be printable.
func (t tone) paint(text string, colours bool) string {
	if code, ok := toneCodes[t]; ok && colours && text != "" {
		return "\x1b[" + code + "m" + text + "\x1b[0m"
	}
	return text
}

// cell is one field of a table. Numbers are set to the right.
type cell struct {
	text   string
	tone   tone
	number bool
}

func word(text string, tones ...tone) cell   { return newCell(text, false, tones) }
func number(text string, tones ...tone) cell { return newCell(text, true, tones) }

func newCell(text string, isNumber bool, tones []tone) cell {
	c := cell{text: printable(text), number: isNumber}
	if c.text == "" {
		c.text, c.tone = "-", faint
		return c
	}
	if len(tones) > 0 {
		c.tone = tones[0]
	}
	return c
}

// table lines up cells in columns.
type table struct {
	head []string
	rows [][]cell
}

func newTable(head ...string) *table { return &table{head: head} }

func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

// write prints the table. A column of numbers is set to the right, its head too.
func (t *table) write(w io.Writer, colours bool) error {
	widths, numbers := make([]int, len(t.head)), make([]bool, len(t.head))
	for i, h := range t.head {
		widths[i] = utf8.RuneCountInString(h)
	}
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
			numbers[i] = numbers[i] || c.number
		}
	}
	var b strings.Builder
	line := func(row []cell) {
		for i, c := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text))
			last := i == len(row)-1
			switch text := c.tone.paint(c.text, colours); {
			case numbers[i]:
				b.WriteString(pad + text)
			case last:
				b.WriteString(text)
			default:
				b.WriteString(text + pad)
			}
			if !last {
				b.WriteString("  ")
			}
		}
		b.WriteString("\n")
	}
	head := make([]cell, len(t.head))
	for i, h := range t.head {
		head[i] = cell{text: h, tone: faint}
	}
	line(head)
	for _, row := range t.rows {
		line(row)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printable replaces what could move the cursor or turn the text around.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// facts prints names and values, one a line.
type facts struct {
	w       io.Writer
	colours bool
	err     error
}

func (f *facts) add(indent int, name, value string, tones ...tone) {
	t := plain
	if len(tones) > 0 {
		t = tones[0]
	}
	if value == "" {
		value, t = "-", faint
	}
	line := fmt.Sprintf("%s%-*s%s\n", strings.Repeat(" ", indent), 14-indent, name, t.paint(printable(value), f.colours))
	if _, err := io.WriteString(f.w, line); err != nil && f.err == nil {
		f.err = err
	}
}

// writeJSON prints a value as one line.
func writeJSON(w io.Writer, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	_, err = w.Write(append(escaped(data), '\n'))
	return err
}

// escaped is JSON in which whatever is not printable is written as an escape.
func escaped(data []byte) []byte {
	var out []byte
	for _, r := range string(data) {
		if unicode.IsPrint(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			out = fmt.Appendf(out, "\\u%04x", unit)
		}
	}
	return out
}
