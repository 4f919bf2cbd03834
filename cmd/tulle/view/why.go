package view

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/dashboard"
	"github.com/tulle-mesh/tulle/mesh"
)

// why is all that is known of how a client reaches a server.
type why struct {
	Now     time.Time         `json:"now"`
	Range   string            `json:"range"`
	Path    mesh.Path         `json:"path"`
	Hops    []hop             `json:"hops"`
	Traffic []dashboard.Edge  `json:"traffic"`
	Proxies []dashboard.Proxy `json:"proxies"` // the client's
	Errors  []dashboard.Event `json:"errors"`  // seen just now
	Verdict verdict           `json:"verdict"`
}

const (
	whyAbout = "Says what becomes of a connection from CLIENT to SERVER now: what the name resolves to, where it leads, whether it is protected and why not, " +
		"how it fares, and what to do. In Kubernetes: tulle why deploy/web svc/catalog, or names; SERVER may have a port (catalog:8080). The exit code is 1 if they cannot talk."
	whyRange = "5m"
	// lookFor is how long to wait for failures to happen, if some did lately.
	lookFor = 1500 * time.Millisecond
)

func explainWhy(ctx context.Context, env *command.Env, args []string) int {
	flags := command.NewFlags("why CLIENT SERVER [flags]", whyAbout)
	run := flags.RunDir()
	output := flags.String("output", "table", outputs)
	flags.Short("o", "output")
	since := flags.String("since", whyRange, "how far back figures reach: a `DURATION` from 5s to 1h, or start")
	namespace := flags.String("namespace", "", "`NAMESPACE` of names that have none, in Kubernetes")
	flags.Short("n", "namespace")
	operands, err := flags.Parse(env, args)
	if err == nil {
		err = checkOutput(*output)
	}
	if err == nil && len(operands) != 2 {
		err = command.Usagef("why takes two names, who calls and who is called: tulle why web catalog")
	}
	if err != nil {
		return finish(ctx, env, err)
	}
	if _, err := dashboard.ParseWindow(*since); err != nil {
		return env.Fail(command.Usagef("--since %s: must be a duration from 5s to 1h, such as 10s or 5m, or start", *since))
	}
	c := newClient(env, *run)
	defer c.close()
	w, err := c.why(ctx, operands[0], operands[1], *namespace, *since)
	if err != nil {
		return finish(ctx, env, err)
	}
	if *output == "json" {
		err = writeJSON(env.Stdout, w)
	} else {
		err = w.write(env.Stdout, *output == "wide", colours(env))
	}
	if err == nil && w.Verdict.Level == cannot {
		return command.Failure
	}
	return finish(ctx, env, err)
}

// why asks for all that is known, and judges it.
func (c *client) why(ctx context.Context, from, to, namespace, since string) (*why, error) {
	w := &why{Errors: []dashboard.Event{}}
	q := url.Values{"client": {from}, "server": {to}}
	if namespace != "" {
		q.Set("namespace", namespace)
	}
	if err := c.get(ctx, "path", q, &w.Path); err != nil {
		return nil, err
	}
	about := func(name string) url.Values { return url.Values{"range": {since}, "name": {name}} }
	var edges dashboard.Answer[dashboard.Edge]
	if err := c.get(ctx, "edges", about(w.Path.Server.Name), &edges); err != nil {
		return nil, err
	}
	w.Now, w.Range, w.Traffic = edges.Now, edges.Range, edges.Items
	for _, also := range w.Path.Server.Also {
		if err := c.get(ctx, "edges", about(also), &edges); err != nil {
			return nil, err
		}
		w.Traffic = append(w.Traffic, edges.Items...)
	}
	w.Traffic = concerns(&w.Path, w.Traffic)
	var replicas dashboard.Answer[dashboard.Replica]
	for _, name := range append([]string{w.Path.Server.Name}, w.Path.Server.Also...) {
		var some dashboard.Answer[dashboard.Replica]
		if err := c.get(ctx, "replicas", about(name), &some); err != nil {
			return nil, err
		}
		replicas.Items = append(replicas.Items, some.Items...)
	}
	var proxies dashboard.Answer[dashboard.Proxy]
	if err := c.get(ctx, "proxies", about(w.Path.Client.Name), &proxies); err != nil {
		return nil, err
	}
	w.conclude(replicas.Items, proxies.Items)
	if slices.ContainsFunc(w.Traffic, func(e dashboard.Edge) bool { return e.Failures > 0 }) {
		w.Errors = c.failures(ctx, w)
	}
	return w, nil
}

// conclude makes of what was gathered what is shown.
func (w *why) conclude(replicas []dashboard.Replica, proxies []dashboard.Proxy) {
	w.Hops, w.Proxies = []hop{}, []dashboard.Proxy{}
	for i := range w.Path.Ports {
		w.Hops = append(w.Hops, hopsOf(&w.Path, &w.Path.Ports[i])...)
	}
	for _, p := range proxies {
		if slices.ContainsFunc(w.Path.Client.Members, func(m mesh.PathMember) bool { return m.Workload == p.Workload }) {
			w.Proxies = append(w.Proxies, p)
		}
	}
	w.balance(replicas)
	w.Verdict = judge(w)
}

// failures waits a moment for what fails just now.
func (c *client) failures(ctx context.Context, w *why) []dashboard.Event {
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	seen := []dashboard.Event{}
	enough := errors.New("enough")
	q := url.Values{"service": {w.Path.Server.Name}, "client": {w.Path.Client.Name}, "status": {"failed"}, "max": {"10"}}
	// Whatever ends it: what was seen until then is shown.
	_ = c.events(ctx, "tap", q, func(data []byte) error {
		var e dashboard.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return err
		}
		if seen = append(seen, e); len(seen) == maxFail {
			return enough
		}
		return nil
	})
	return seen
}

// write prints it all, the verdict last.
func (w *why) write(out io.Writer, wide, colours bool) error {
	f := &facts{w: out, colours: colours}
	w.writeEnds(f, wide)
	if f.err != nil {
		return f.err
	}
	if err := w.writeHops(out, wide, colours); err != nil {
		return err
	}
	if err := w.writeTraffic(out, colours); err != nil {
		return err
	}
	return w.writeVerdict(out, colours)
}

func (w *why) writeEnds(f *facts, wide bool) {
	p := &w.Path
	f.add(0, "From", p.Client.Name, strong)
	for _, g := range groups(p.Client.Members, wide) {
		text, tone := g.about, plain
		if g.bad {
			tone = warning
		}
		f.add(2, "", g.who+": "+text, tone)
	}
	f.add(0, "To", p.Server.Name+", "+kindText(p), strong)
	if len(p.Server.Names) > 0 {
		names := strings.Join(p.Server.Names, ", ")
		if len(p.Server.Addresses) == 0 {
			f.add(2, "Name", names+" resolves to nothing", bad)
		} else {
			f.add(2, "Name", names+" resolves to "+strings.Join(cutList(p.Server.Addresses, wide), ", "))
		}
	}
	for i := range p.Ports {
		port := &p.Ports[i]
		label := "Port " + strconv.Itoa(int(port.Port))
		if port.Port == 0 {
			label = "Any port"
		}
		protocol, reason := w.spoken(port)
		switch {
		case port.Missing:
			f.add(2, label, "there is none", bad)
		case protocol == "":
			f.add(2, label, "protocol "+reason, faint)
		default:
			f.add(2, label, protocol+", "+reason)
		}
	}
}

func kindText(p *mesh.Path) string {
	switch p.Server.Kind {
	case mesh.PathService:
		return "a service"
	case mesh.PathHeadless:
		return "a headless service: clients dial its endpoints themselves"
	case mesh.PathExternal:
		return "another name for " + p.Server.Target
	case mesh.PathCatalog:
		return "a service of the catalog file"
	}
	return "dialled by its own address"
}

// cutList shortens a list for reading.
func cutList(list []string, wide bool) []string {
	const most = 4
	if wide || len(list) <= most {
		return list
	}
	return append(slices.Clone(list[:most]), fmt.Sprintf("and %d more", len(list)-most))
}

// memberGroup is workloads of which the same can be said.
type memberGroup struct {
	who, about string
	bad        bool
}

func groups(members []mesh.PathMember, wide bool) []memberGroup {
	var order []string
	names := map[string][]string{}
	bad := map[string]bool{}
	for i := range members {
		m := &members[i]
		about := "in the mesh as " + m.Identity
		if m.Identity == "" {
			about = "not in the mesh: " + m.Plain
		}
		if m.SkipOutbound != "" {
			about += "; goes around its proxy to ports " + m.SkipOutbound
		}
		if m.State == "starting" || m.State == "lost" {
			about += "; " + m.State
		}
		if names[about] == nil {
			order = append(order, about)
		}
		names[about] = append(names[about], named(m))
		bad[about] = m.Identity == "" || m.State == "lost"
	}
	list := make([]memberGroup, 0, len(order))
	for _, about := range order {
		list = append(list, memberGroup{strings.Join(cutList(names[about], wide), ", "), about, bad[about]})
	}
	return list
}

// mostHops is how many endpoints are shown unless all are asked for.
const mostHops = 20

func (w *why) writeHops(out io.Writer, wide, colours bool) error {
	if len(w.Hops) == 0 {
		return nil
	}
	hops := slices.Clone(w.Hops)
	if len(hops) > mostHops && !wide {
		slices.SortStableFunc(hops, func(a, b hop) int { // those with something to tell first
			return cmp.Or(cmp.Compare(severity[b.Security], severity[a.Security]), cmp.Compare(len(b.Why), len(a.Why)))
		})
		hops = hops[:mostHops]
	}
	t := newTable("ENDPOINT", "ADDRESS", "STATE", "SECURITY", "ESTIMATE", "IN-FLIGHT", "SHARE", "NOTE")
	for i := range hops {
		h := &hops[i]
		state, protection := word(h.State, good), word("mTLS", good)
		if h.State != mesh.PathReady {
			state.tone = warning
		}
		switch {
		case !h.Used:
			protection = word("not used", faint)
		case h.Security == exposed:
			protection = word(exposed, warning)
		case h.Security == refusal:
			protection = word(refusal, bad)
		}
		inFlight := number("")
		if h.Estimate != nil {
			inFlight = number(count(h.InFlight))
		}
		note := h.Why
		if note != "" && h.Whose != cmp.Or(h.Workload, h.Address) {
			note = h.because()
		}
		t.add(word(h.Workload, strong), word(h.Address), state, protection, latency(h.Estimate), inFlight, number(percent(h.Share)), word(note))
	}
	if _, err := fmt.Fprintln(out); err != nil {
		return err
	}
	if err := t.write(out, colours); err != nil {
		return err
	}
	if left := len(w.Hops) - len(hops); left > 0 {
		_, err := fmt.Fprintf(out, "and %d more; see them with -o wide\n", left)
		return err
	}
	return nil
}

func (w *why) writeTraffic(out io.Writer, colours bool) error {
	if len(w.Traffic) == 0 {
		_, err := fmt.Fprintf(out, "\nNo traffic from %s to %s in the last %s.\n", printable(w.Path.Client.Name), printable(w.Path.Server.Name), w.Range)
		return err
	}
	if _, err := fmt.Fprintf(out, "\nTraffic in the last %s:\n", w.Range); err != nil {
		return err
	}
	if err := writeEdges(out, w.Traffic, false, colours); err != nil {
		return err
	}
	outcomes, statuses := outcomesOf(w.Traffic)
	if len(outcomes) > 0 {
		text := "Failed since the proxies' start: " + counted(outcomes)
		if len(statuses) > 0 {
			text += "; HTTP statuses: " + statusText(statuses)
		}
		if _, err := fmt.Fprintln(out, printable(text)); err != nil {
			return err
		}
	}
	for i := range w.Errors {
		if err := writeEvent(out, &w.Errors[i], false, colours); err != nil {
			return err
		}
	}
	return nil
}

func (w *why) writeVerdict(out io.Writer, colours bool) error {
	mark, t := "✓ ", good
	switch w.Verdict.Level {
	case unsure:
		mark, t = "! ", warning
	case cannot:
		mark, t = "✗ ", bad
	}
	text := mark + printable(w.Verdict.Text)
	if w.Verdict.Next != "" {
		text += " -> " + printable(w.Verdict.Next)
	}
	_, err := fmt.Fprintf(out, "\n%s\n", t.paint(text, colours))
	return err
}
