package command

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseMixesFlagsAndOperands(t *testing.T) {
	for _, tc := range []struct {
		args     string
		operands []string
		n        int
		wantErr  string
	}{
		{"web --n 3 -- sh -c x", []string{"web", "sh", "-c", "x"}, 3, ""},
		{"--n=2 web", []string{"web"}, 2, ""},
		{"web api -n 4", []string{"web", "api"}, 4, ""},
		{"-- --n 3", []string{"--n", "3"}, 1, ""},
		{"", nil, 1, ""},
		{"--replcas 3", nil, 1, "did you mean --replicas?"},
		{"--zzzzzzzzzz", nil, 1, "tulle run --help"},
		{"--n x", nil, 1, "tulle run --help"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			f := NewFlags("run NAME", "")
			n := f.Int("n", 1, "count")
			f.Bool("replicas", false, "x")
			got, err := f.Parse(&Env{Stdout: &strings.Builder{}}, strings.Fields(tc.args))
			if tc.wantErr != "" {
				var usage *UsageError
				if !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("got error %v, want one with %q", err, tc.wantErr)
				}
				return
			}
			if err != nil || !slices.Equal(got, tc.operands) || *n != tc.n {
				t.Errorf("got %q, n=%d, err %v; want %q, n=%d", got, *n, err, tc.operands, tc.n)
			}
		})
	}
}

func TestHelpListsFlags(t *testing.T) {
	f := NewFlags("ps [flags]", "Lists workloads.")
	f.RunDir()
	f.Bool("all", false, "show all")
	f.Short("a", "all")
	out := &strings.Builder{}
	if _, err := f.Parse(&Env{Stdout: out}, []string{"--help"}); !errors.Is(err, ErrHelp) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"Usage: tulle ps [flags]\n", "Lists workloads.", "-a, --all", "--run DIR", "(default /run/tulle)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help lacks %q:\n%s", want, out)
		}
	}
}

func TestNearest(t *testing.T) {
	all := []string{"up", "down", "run", "stop", "dashboard"}
	for word, want := range map[string]string{"rnu": "run", "dashbord": "dashboard", "stpo": "stop", "kubernetes": ""} {
		if got := Nearest(word, all); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestFailIsOneLine(t *testing.T) {
	out := &strings.Builder{}
	env := &Env{Stderr: out, Environ: []string{"A=1", "A=2"}}
	if code := env.Fail(WithHint(errors.Join(errors.New("a"), errors.New("b")), "type: c")); code != Failure {
		t.Errorf("code %d", code)
	}
	if got := out.String(); got != "tulle: a; b; type: c\n" {
		t.Errorf("got %q", got)
	}
	if env.Fail(nil) != OK || env.Fail(Usagef("x")) != Usage || env.Getenv("A") != "2" {
		t.Error("wrong exit code or environment")
	}
}

func TestWrapped(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "",
		"short":                  "short",
		"ten chars.":             "ten chars.",
		"ten chars. and more":    "ten chars.\nand more",
		"one two three four":     "one two\nthree four",
		"a\n\nparagraph kept":    "a\n\nparagraph\nkept",
		"unbreakablylongword it": "unbreakablylongword it",
		"é é é é é é é":          "é é é é é\né é",
	} {
		if got := wrapped(text, 10); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
