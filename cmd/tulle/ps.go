package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

const psAbout = `
Lists the workloads of this host, also those that have ended, until their name
is run again or the mesh goes down.`

func runPs(ctx context.Context, env *command.Env, args []string) int {
	f := command.NewFlags("ps [flags]", psAbout)
	run := f.RunDir()
	format := f.String("output", "table", "`FORMAT`: table or json")
	f.Short("o", "output")
	err := f.ParseNone(env, args)
	switch {
	case errors.Is(err, command.ErrHelp):
		return command.OK
	case err == nil && *format != "table" && *format != "json":
		err = command.Usagef("--output %s: must be table or json", *format)
	}
	if err == nil {
		err = needRoot("ps")
	}
	if err != nil {
		return env.Fail(err)
	}
	list, err := listWorkloads(ctx, *run)
	if err != nil {
		return env.Fail(err)
	}
	if *format == "json" {
		return env.Fail(printJSON(env.Stdout, list))
	}
	return env.Fail(printTable(env.Stdout, list.GetWorkloads(), time.Now()))
}

func listWorkloads(ctx context.Context, run string) (*tullev1.ListResponse, error) {
	client, hangUp, err := dialHost(run)
	if err != nil {
		return nil, err
	}
	defer hangUp()
	list, err := client.List(ctx, &tullev1.ListRequest{})
	return list, hostError(err)
}

// row is a workload as -o json shows it.
type row struct {
	Name     string    `json:"name"`
	Service  string    `json:"service"`
	Address4 string    `json:"address4"`
	Address6 string    `json:"address6,omitempty"`
	Ports    []uint32  `json:"ports"`
	State    string    `json:"state"`
	Started  time.Time `json:"started"`
	Pid      int32     `json:"pid,omitempty"`
	Identity string    `json:"identity"`
	Command  []string  `json:"command"`
	Log      string    `json:"log,omitempty"`
}

func printJSON(w io.Writer, list *tullev1.ListResponse) error {
	rows := []row{}
	for _, wl := range list.GetWorkloads() {
		ports := wl.GetPorts()
		if ports == nil {
			ports = []uint32{}
		}
		rows = append(rows, row{
			Name: wl.GetReplica(), Service: wl.GetService(), Address4: wl.GetAddress4(), Address6: wl.GetAddress6(),
			Ports: ports, State: wl.GetState(), Started: time.Unix(wl.GetStartedUnix(), 0).UTC(), Pid: wl.GetPid(),
			Identity: wl.GetIdentity(), Command: wl.GetCommand(), Log: wl.GetLog(),
		})
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(rows)
}

func printTable(out io.Writer, workloads []*tullev1.Workload, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NAME\tADDRESS\tPORTS\tSTATE\tAGE\tPID\tCOMMAND")
	for _, wl := range workloads {
		var ports []string
		for _, p := range wl.GetPorts() {
			ports = append(ports, strconv.Itoa(int(p)))
		}
		pid := "-"
		if wl.GetPid() > 0 && !strings.HasPrefix(wl.GetState(), "exited") {
			pid = strconv.Itoa(int(wl.GetPid()))
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			wl.GetReplica(), wl.GetAddress4(), orDash(strings.Join(ports, ",")), wl.GetState(),
			age(now.Sub(time.Unix(wl.GetStartedUnix(), 0))), pid, shorten(strings.Join(wl.GetCommand(), " "), 60))
	}
	return w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age is a duration in its largest unit.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// shorten makes one line of at most n characters, without control characters.
func shorten(s string, n int) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s))
	if len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return string(runes)
}

const stopAbout = `
Stops a service with all its replicas, or one replica, and waits for the end:
the command gets SIGTERM, and SIGKILL if it still runs after 10 s.`

func runStop(ctx context.Context, env *command.Env, args []string) int {
	f := command.NewFlags("stop NAME… [flags]", stopAbout)
	run := f.RunDir()
	operands, err := f.Parse(env, args)
	switch {
	case errors.Is(err, command.ErrHelp):
		return command.OK
	case err == nil && len(operands) == 0:
		err = command.Usagef("which one? type: tulle stop NAME; names: tulle ps")
	}
	if err == nil {
		err = needRoot("stop")
	}
	if err != nil {
		return env.Fail(err)
	}
	client, hangUp, err := dialHost(*run)
	if err != nil {
		return env.Fail(err)
	}
	defer hangUp()
	for _, name := range operands {
		response, err := client.Stop(ctx, &tullev1.StopRequest{Name: name})
		if err != nil {
			return env.Fail(hostError(err))
		}
		for _, replica := range response.GetStopped() {
			_, _ = fmt.Fprintln(env.Stdout, replica)
		}
	}
	return command.OK
}

func runVersion(_ context.Context, env *command.Env, args []string) int {
	err := command.NewFlags("version", "Prints the version of this program.").ParseNone(env, args)
	if errors.Is(err, command.ErrHelp) {
		return command.OK
	}
	if err != nil {
		return env.Fail(err)
	}
	_, err = fmt.Fprintf(env.Stdout, "tulle %s\n", version)
	return env.Fail(err)
}
