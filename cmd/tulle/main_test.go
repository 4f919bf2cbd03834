package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/kube/chart"
)

func runCLI(args ...string) (code int, stdout, stderr string) {
	var out, err strings.Builder
	env := &command.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err}
	code = dispatch(context.Background(), env, commands(), args)
	return code, out.String(), err.String()
}

func TestDispatch(t *testing.T) {
	for _, tc := range []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"", 2, "", "Usage: tulle COMMAND"},
		{"help", 0, "run        Run a command", ""},
		{"--help", 0, "Usage: tulle COMMAND", ""},
		{"help run", 0, "Usage: tulle run NAME", ""},
		{"run -h", 0, "--replicas N", ""},
		{"up --help", 0, "--no-masquerade", ""},
		{"version", 0, "tulle " + version, ""},
		{"--version", 0, "tulle " + version, ""},
		{"version --help", 0, "Usage: tulle version", ""},
		{"version 2", 2, "", "takes no operands"},
		{"rnu", 2, "", "did you mean: tulle run"},
		{"kubernetes", 2, "", "all commands: tulle help"},
		{"up extra", 2, "", "takes no operands"},
		{"up --network4 10.0.0.0/33", 2, "", "must be a network"},
		{"up --network4 127.0.0.0/8", 2, "", "another meaning; choose a private one"},
		{"up --network4 224.0.0.0/8", 2, "", "another meaning; choose a private one"},
		{"up --network6 fe80::/64", 2, "", "another meaning; choose a private one"},
		{"up --network4 10.0.0.1/16", 2, "", "write 10.0.0.0/16"},
		{"up --network6 10.0.0.0/16", 2, "", "must be an IPv6 network"},
		{"up --network6 fd84:7475:6c6c:7f54::/64", 2, "", "which is the redirect's; choose another"},
		{"up --dashboard nowhere", 2, "", "must be ADDRESS:PORT"},
		{"down --prge", 2, "", "did you mean --purge?"},
		{"ps -o xml", 2, "", "must be table or json"},
		{"stop", 2, "", "tulle stop NAME"},
		{"logs", 2, "", "tulle logs NAME"},
		{"check -o xml", 2, "", "must be tree, json or junit"},
		{"run", 125, "", "tulle run NAME -- COMMAND"},
		{"run web", 125, "", "tulle run web -- COMMAND"},
		{"run web ls", 125, "", "tulle run web -- ls"},
		{"run Web -- ls", 125, "", "only a-z, 0-9"},
		{"run web:0 -- ls", 125, "", "must be 1 to 65535"},
		{"run web:80,80 -- ls", 125, "", "listed twice"},
		{"run web:4143 -- ls", 125, "", "the proxy's own"},
		{"run web --replicas 0 -- ls", 125, "", "must be 1 to 1000"},
		{"run web --env =x -- ls", 125, "", "must be KEY=VALUE"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			code, stdout, stderr := runCLI(strings.Fields(tc.args)...)
			if code != tc.code || !strings.Contains(stdout, tc.stdout) || !strings.Contains(stderr, tc.stderr) {
				t.Errorf("got code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			if code == 0 && stderr != "" || tc.args != "" && strings.Count(stderr, "\n") > 1 {
				t.Errorf("stderr is not one line: %q", stderr)
			}
		})
	}
}

func TestEveryCommandHasHelp(t *testing.T) {
	for _, c := range commands() {
		if c.Name == "version" {
			continue
		}
		code, stdout, stderr := runCLI(c.Name, "--help")
		if code != 0 || !strings.HasPrefix(stdout, "Usage: tulle "+c.Name) || stderr != "" {
			t.Errorf("%s: code %d, stdout %q, stderr %q", c.Name, code, stdout, stderr)
		}
	}
}

func TestNotUp(t *testing.T) {
	for _, args := range [][]string{{"ps"}, {"stop", "x"}} {
		code, _, stderr := runCLI(append(args, "--run", t.TempDir())...)
		if code != 1 || !strings.Contains(stderr, "tulle up") && !strings.Contains(stderr, "sudo") {
			t.Errorf("%v: code %d, stderr %q", args, code, stderr)
		}
	}
}

func TestParseRunSeparatesFlagsFromCommand(t *testing.T) {
	env := &command.Env{}
	c, err := parseRun(env, strings.Fields("web:80,443 --rm -e A=b --proxy /bin/sh -- ls --rm -- x"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Service != "web" || !slices.Equal(c.Ports, []uint16{80, 443}) || !c.Remove || c.detach ||
		!slices.Equal(c.Env, []string{"A=b"}) || !slices.Equal(c.Command, []string{"ls", "--rm", "--", "x"}) {
		t.Errorf("got %+v", c)
	}
}

func TestPsTable(t *testing.T) {
	now := time.Unix(10_000, 0)
	out := &strings.Builder{}
	err := printTable(out, []*tullev1.Workload{
		{Replica: "web-1", Address4: "10.84.0.2", Ports: []uint32{80, 443}, State: "ready", StartedUnix: 9_990, Pid: 7, Command: []string{"sh", "-c", "a\nb"}},
		{Replica: "job-1", Address4: "10.84.0.3", State: "exited (3)", StartedUnix: 2_800, Pid: 8, Command: []string{strings.Repeat("x", 99)}},
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	want := "NAME   ADDRESS    PORTS   STATE       AGE  PID  COMMAND\n" +
		"web-1  10.84.0.2  80,443  ready       10s  7    sh -c a b\n" +
		"job-1  10.84.0.3  -       exited (3)  2h   -    " + strings.Repeat("x", 59) + "…\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

// What is installed in a cluster says that it is of this version.
func TestChartIsOfThisVersion(t *testing.T) {
	if got, err := chart.Version(); got != version || err != nil {
		t.Errorf("the chart is of version %q, %v, this is %s", got, err, version)
	}
}
