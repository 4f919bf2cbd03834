package command

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// ErrHelp is returned by Parse after it printed the help that was asked for;
// the command then ends with OK.
var ErrHelp = errors.New("help was printed")

// UsageError is a mistake in the command line.
type UsageError struct{ msg string }

func (e *UsageError) Error() string { return e.msg }

// Usagef returns a UsageError.
func Usagef(format string, args ...any) error {
	return &UsageError{msg: fmt.Sprintf(format, args...)}
}

// Flags parses one command's flags, which may stand before, between and after
// its operands. Both -name and --name are understood.
type Flags struct {
	*flag.FlagSet
	synopsis string
	about    string
	short    map[string]string // long name -> one-letter name
}

// NewFlags starts an empty set. The synopsis is the usage line after
// "tulle ", about the text below it.
func NewFlags(synopsis, about string) *Flags {
	name, _, _ := strings.Cut(synopsis, " ")
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	return &Flags{FlagSet: fs, synopsis: synopsis, about: about, short: map[string]string{}}
}

// RunDir adds --run, which every command that talks to a running mesh has.
func (f *Flags) RunDir() *string {
	return f.String("run", DefaultRun, "`DIR` of the running mesh's sockets and state")
}

// Short gives the flag long a one-letter name as well.
func (f *Flags) Short(letter, long string) {
	f.Var(f.Lookup(long).Value, letter, "")
	f.short[long] = letter
}

// Parse reads args and returns the operands. What follows a lone "--" is
// always an operand. Parse itself prints the help if asked to.
func (f *Flags) Parse(env *Env, args []string) ([]string, error) {
	var operands []string
	for {
		before := len(args)
		if err := f.FlagSet.Parse(args); err != nil {
			return nil, f.explain(env, err)
		}
		rest := f.FlagSet.Args()
		if consumed := before - len(rest); consumed > 0 && args[consumed-1] == "--" {
			return append(operands, rest...), nil
		}
		if len(rest) == 0 {
			return operands, nil
		}
		operands, args = append(operands, rest[0]), rest[1:]
	}
}

// ParseNone is Parse for a command without operands.
func (f *Flags) ParseNone(env *Env, args []string) error {
	operands, err := f.Parse(env, args)
	if err == nil && len(operands) > 0 {
		err = Usagef("tulle %s takes no operands, but got %q", f.Name(), operands[0])
	}
	return err
}

func (f *Flags) explain(env *Env, err error) error {
	if errors.Is(err, flag.ErrHelp) {
		f.printHelp(env.Stdout)
		return ErrHelp
	}
	if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
		var names []string
		f.VisitAll(func(fl *flag.Flag) { names = append(names, fl.Name) })
		if near := Nearest(name, names); near != "" {
			return Usagef("unknown flag --%s; did you mean --%s?", name, near)
		}
		return Usagef("unknown flag --%s; all flags: tulle %s --help", name, f.Name())
	}
	return Usagef("%v; all flags: tulle %s --help", err, f.Name())
}

func (f *Flags) printHelp(w io.Writer) {
	_, _ = fmt.Fprintf(w, "Usage: tulle %s\n\n%s\n", f.synopsis, wrapped(strings.TrimSpace(f.about), helpWidth))
	first := true
	f.VisitAll(func(fl *flag.Flag) {
		if fl.Usage == "" {
			return
		}
		if first {
			_, _ = fmt.Fprintln(w, "\nFlags:")
			first = false
		}
		value, usage := flag.UnquoteUsage(fl)
		name := "    --" + fl.Name
		if len(fl.Name) == 1 {
			name = "-" + fl.Name
		}
		if letter, ok := f.short[fl.Name]; ok {
			name = "-" + letter + ", --" + fl.Name
		}
		if isBool(fl) {
			value = ""
		} else if value != "" {
			name += " " + value
		}
		if fl.DefValue != "" && fl.DefValue != "0s" && value != "" {
			usage += " (default " + fl.DefValue + ")"
		}
		_, _ = fmt.Fprintf(w, "  %-28s %s\n", name, usage)
	})
}

// helpWidth is how long a line of text may be that is to be read.
const helpWidth = 80

// wrapped breaks lines that are longer than width characters between words.
func wrapped(text string, width int) string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		for utf8.RuneCountInString(line) > width {
			cut := len(string([]rune(line)[:width+1]))
			if i := strings.LastIndexByte(line[:cut], ' '); i > 0 {
				lines, line = append(lines, line[:i]), line[i+1:]
				continue
			}
			break
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func isBool(f *flag.Flag) bool {
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// List is a flag that may be given several times.
type List []string

// String joins the values.
func (l *List) String() string {
	if l == nil {
		return ""
	}
	return strings.Join(*l, ",")
}

// Set adds a value.
func (l *List) Set(v string) error {
	*l = append(*l, v)
	return nil
}

// Nearest returns the candidate that word most likely misspells, or "" if
// none is close.
func Nearest(word string, candidates []string) string {
	best, bestDist := "", len(word)/3+2
	for _, c := range candidates {
		if len(c) == 1 {
			continue
		}
		if d := distance(word, c); d < bestDist {
			best, bestDist = c, d
		}
	}
	return best
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
