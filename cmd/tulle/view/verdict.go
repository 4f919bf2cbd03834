package view

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/dashboard"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// What becomes of a connection.
const (
	mutual  = "mtls"
	exposed = "plaintext"
	refusal = "refused"
)

// protect tells how a connection from a client's workload to an endpoint is
// protected, given the port that was dialled, and why it is not by mutual TLS:
// whose fault that is, what is wrong, and what to type.
func protect(client, endpoint *mesh.PathMember, dialled uint16) (security, whose, why, remedy string) {
	anonymous, remedy := client.Plain, client.Remedy
	if around, err := cluster.ParsePorts(client.SkipOutbound); err == nil && anonymous == "" {
		for _, ports := range around {
			if ports.Contains(dialled) {
				anonymous = fmt.Sprintf("its annotation %s has %d: connections go around its proxy", cluster.SkipOutboundPorts, dialled)
				remedy = "take the port out of that annotation (of the pod's template, or of the namespace)"
			}
		}
	}
	switch {
	case anonymous != "" && endpoint.Strict:
		return refusal, named(client), anonymous + ", and " + named(endpoint) + " refuses whoever proves no identity (strict)", remedy
	case endpoint.Identity == "":
		return exposed, named(endpoint), endpoint.Plain, endpoint.Remedy
	case anonymous != "":
		return exposed, named(client), anonymous, remedy
	}
	return mutual, "", "", ""
}

func named(m *mesh.PathMember) string { return cmp.Or(m.Workload, m.Address) }

// hop is what becomes of connections to one endpoint: the worst there is, where
// the client's workloads differ.
type hop struct {
	Port     uint16 `json:"port"`
	Workload string `json:"workload,omitempty"`
	Address  string `json:"address"`
	Used     bool   `json:"used"`
	State    string `json:"state"`
	Security string `json:"security"`
	Whose    string `json:"whose,omitempty"` // workload that is not as it should be
	Why      string `json:"why,omitempty"`   // it is not mutual TLS, or not used
	Remedy   string `json:"remedy,omitempty"`

	// As the balancers of the client's proxies see it; null: they have not met.
	Estimate *float64 `json:"estimate_s"`
	InFlight uint64   `json:"in_flight"`
	Share    *float64 `json:"share"` // of all requests to the server, whoever makes them
}

// because says why it is not used, or not by mutual TLS.
func (h *hop) because() string { return h.Whose + ": " + h.Why }

var severity = map[string]int{mutual: 0, exposed: 1, refusal: 2}

// hopsOf returns what becomes of connections to each endpoint of a port.
func hopsOf(p *mesh.Path, port *mesh.PathPort) []hop {
	hops := make([]hop, 0, len(port.Endpoints))
	for i := range port.Endpoints {
		e := &port.Endpoints[i]
		h := hop{Port: port.Port, Workload: e.Workload, Address: e.Address, Used: e.Used, State: e.State, Security: mutual}
		for j := range p.Client.Members {
			security, whose, why, remedy := protect(&p.Client.Members[j], e, port.Port)
			if severity[security] > severity[h.Security] {
				h.Security, h.Whose, h.Why, h.Remedy = security, whose, why, remedy
			}
		}
		if !e.Used && e.Unused != "" {
			h.Whose, h.Why, h.Remedy = named(e), e.Unused, e.Remedy
		}
		hops = append(hops, h)
	}
	return hops
}

// Levels of a verdict.
const (
	fine    = "fine"
	unsure  = "warning" // they can talk, but something is not as it should be
	cannot  = "failing"
	maxFail = 5 // failures that are shown
)

// verdict is the last word.
type verdict struct {
	Level string `json:"level"`
	Text  string `json:"text"`
	Next  string `json:"next,omitempty"` // what to type
}

func (v verdict) rank() int { return slices.Index([]string{fine, unsure, cannot}, v.Level) }

// judge says what it all comes to. What cannot be comes first, then what is seen
// to fail, then what is not protected.
func judge(w *why) verdict {
	p := &w.Path
	switch {
	case p.Server.Kind == mesh.PathExternal:
		return external(p)
	case len(p.Client.Members) == 0:
		return verdict{cannot, "nobody is there to call: " + p.Client.Name + " has no pods", p.Client.Hint}
	case len(p.Ports) == 0:
		return verdict{unsure, p.Server.Name + " has no TCP port: the mesh lets everything else pass untouched", p.Server.Hint}
	}
	v := w.judgePorts()
	if v.Level == cannot {
		return v
	}
	if seen := w.judgeTraffic(); seen.rank() > fineRank && seen.rank() >= v.rank() {
		return seen
	}
	return v
}

const fineRank = 0

func external(p *mesh.Path) verdict {
	v := verdict{Level: unsure, Text: fmt.Sprintf("%s is only another name for %s: connections go to whatever that resolves to, and the mesh sees them as such", p.Server.Name, p.Server.Target)}
	v.Next = "kubectl -n " + p.Server.Namespace + " get service " + strings.TrimSuffix(p.Server.Name, "."+p.Server.Namespace)
	if inside, ok := cluster.CutDomain(p.Server.Target); ok {
		v.Next = "tulle why " + p.Client.Name + " " + inside
	}
	return v
}

// judgePorts is good if one port is; then the worst of the others is told.
func (w *why) judgePorts() verdict {
	var best, worst verdict
	for i := range w.Path.Ports {
		v := w.judgePort(&w.Path.Ports[i])
		if best.Level == "" || v.rank() < best.rank() {
			best = v
		}
		if worst.Level == "" || v.rank() > worst.rank() {
			worst = v
		}
	}
	if worst.Level == cannot && best.Level != cannot {
		return verdict{unsure, worst.Text + "; its other ports can be reached", worst.Next}
	}
	return worst
}

func (w *why) judgePort(port *mesh.PathPort) verdict {
	p, at := &w.Path, w.Path.Server.Name
	if port.Port != 0 && len(p.Ports) > 1 {
		at = fmt.Sprintf("%s:%d", at, port.Port)
	}
	if port.Missing {
		v := verdict{cannot, fmt.Sprintf("%s has no port %d: connections are refused", p.Server.Name, port.Port), ""}
		if len(port.Others) > 0 {
			v.Text = fmt.Sprintf("%s has no port %d, but %s: connections are refused", p.Server.Name, port.Port, numbers(port.Others))
			v.Next = fmt.Sprintf("tulle why %s %s:%d", p.Client.Name, p.Server.Name, port.Others[0])
		}
		return v
	}
	used := map[string][]*hop{}
	var unused *hop
	n := 0
	for i := range w.Hops {
		switch h := &w.Hops[i]; {
		case h.Port != port.Port:
		case h.Used:
			used[h.Security] = append(used[h.Security], h)
			n++
		case unused == nil:
			unused = h
		}
	}
	switch {
	case len(port.Endpoints) == 0:
		return verdict{cannot, "nobody is behind " + at + ": it has no endpoint, and connections are refused", p.Server.Hint}
	case n == 0:
		all := "not even the only endpoint"
		if len(port.Endpoints) > 1 {
			all = "none of the " + things(len(port.Endpoints), "endpoint")
		}
		return verdict{cannot, fmt.Sprintf("%s of %s is ready; %s", all, at, unused.because()), cmp.Or(unused.Remedy, p.Server.Hint)}
	case len(used[refusal]) > 0:
		first := used[refusal][0]
		which := "refused"
		if len(used[refusal]) < n {
			which = fmt.Sprintf("refused by %d of %s", len(used[refusal]), things(n, "endpoint"))
		}
		return verdict{cannot, fmt.Sprintf("%s is %s at %s; %s", p.Client.Name, which, at, first.because()), first.Remedy}
	case len(used[exposed]) > 0:
		first := used[exposed][0]
		which := "in plaintext"
		if len(used[exposed]) < n {
			which = fmt.Sprintf("to %d of %s in plaintext", len(used[exposed]), things(n, "endpoint"))
		}
		return verdict{unsure, fmt.Sprintf("%s reaches %s %s; %s", p.Client.Name, at, which, first.because()), first.Remedy}
	}
	if len(port.Others) > 0 {
		return verdict{unsure, fmt.Sprintf("%s declares %s only: whether somebody listens on %d, a connection will tell", p.Server.Name, numbers(port.Others), port.Port), p.Server.Hint}
	}
	return verdict{fine, fmt.Sprintf("%s reaches %s by mutual TLS, at %s", p.Client.Name, at, things(n, "endpoint")), ""}
}

// judgeTraffic tells whether what was seen lately contradicts what should be.
func (w *why) judgeTraffic() verdict {
	p := &w.Path
	var requests, failures uint64
	outcomes, plain := map[string]uint64{}, uint64(0)
	for _, e := range w.Traffic {
		requests, failures = requests+e.Requests, failures+e.Failures
		if e.Security == exposed {
			plain += e.Requests
		}
		for outcome, n := range e.Outcomes {
			outcomes[outcome] += n
		}
	}
	for _, proxy := range w.Proxies {
		if proxy.State == "lost" {
			return verdict{unsure, fmt.Sprintf("the proxy of %s has gone without a word: nothing leaves or enters %s while it is away", proxy.Workload, proxy.Workload), w.look(proxy.Workload)}
		}
	}
	tap := fmt.Sprintf("tulle tap %s --client %s --status failed", p.Server.Name, p.Client.Name)
	if failures > 0 {
		level := unsure
		if failures == requests && !w.answered(failures, outcomes) {
			level = cannot // not one of them has reached the application
		}
		return verdict{level, fmt.Sprintf("%s of %s failed in the last %s (%s since the proxies' start)", things(int(failures), "request"), count(requests), w.Range, counted(outcomes)), tap}
	}
	if meshed := w.allMutual(); meshed && plain > 0 {
		return verdict{unsure, fmt.Sprintf("%s went in plaintext in the last %s, though by now all should be mutual TLS", things(int(plain), "request"), w.Range), "tulle edges " + p.Client.Name}
	}
	return verdict{Level: fine}
}

// answered tells whether the application itself failed some of the window's
// failures. The outcomes are counted since the proxies' start: an answer of last
// week says nothing of today, unless the others alone are too few.
func (w *why) answered(failures uint64, outcomes map[string]uint64) bool {
	app := mesh.AppFailure.String()
	others := uint64(0)
	for outcome, n := range outcomes {
		if outcome != app {
			others += n
		}
	}
	return others < failures || slices.ContainsFunc(w.Errors, func(e dashboard.Event) bool { return e.Outcome == app })
}

func (w *why) allMutual() bool {
	return !slices.ContainsFunc(w.Hops, func(h hop) bool { return h.Used && h.Security != mutual })
}

// look is what to type to see what a workload has to say.
func (w *why) look(workload string) string {
	if w.Path.Client.Namespace != "" {
		return "kubectl -n " + w.Path.Client.Namespace + " describe pod " + workload
	}
	return "tulle logs " + workload
}

func things(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func numbers(ports []uint16) string {
	words := make([]string, 0, len(ports))
	for _, port := range ports {
		words = append(words, fmt.Sprint(port))
	}
	return strings.Join(words, ", ")
}

// concerns leaves the edges from the path's client to its server. A client
// without a proxy is known by its address.
func concerns(p *mesh.Path, edges []dashboard.Edge) []dashboard.Edge {
	servers := append([]string{p.Server.Name}, p.Server.Also...)
	clients := map[string]bool{p.Client.Name: true}
	for _, m := range p.Client.Members {
		if m.Identity == "" && m.Address != "" {
			clients[m.Address] = true
		}
	}
	return slices.DeleteFunc(edges, func(e dashboard.Edge) bool { return !clients[e.Source] || !slices.Contains(servers, e.Destination) })
}

// balance puts what the client's balancers know of the endpoints into the hops.
func (w *why) balance(replicas []dashboard.Replica) {
	callers := map[string]bool{}
	for _, m := range w.Path.Client.Members {
		callers[m.Workload] = true
	}
	servers := append([]string{w.Path.Server.Name}, w.Path.Server.Also...)
	for i := range w.Hops {
		h := &w.Hops[i]
		for _, r := range replicas {
			if !slices.Contains(servers, r.Service) || r.Workload != cmp.Or(h.Workload, h.Address) && r.Address != h.Address {
				continue
			}
			h.Share = cmp.Or(h.Share, r.Share)
			total, n := 0.0, 0
			for _, c := range r.Clients {
				if callers[c.Workload] {
					total, n = total+c.EWMA, n+1
					h.InFlight += uint64(c.InFlight)
				}
			}
			if n > 0 {
				h.Estimate = new(total / float64(n))
			}
		}
	}
}

// spoken returns what the client's proxies take the server's port to speak.
func (w *why) spoken(port *mesh.PathPort) (protocol, reason string) {
	if port.Protocol != "" {
		return port.Protocol, "declared by " + port.Declared
	}
	servers := append([]string{w.Path.Server.Name}, w.Path.Server.Also...)
	suffix := fmt.Sprintf(":%d", port.Port)
	for _, proxy := range w.Proxies {
		for _, v := range proxy.Verdicts {
			if slices.Contains(servers, v.Service) && (port.Port == 0 || strings.HasSuffix(v.Destination, suffix)) {
				return v.Protocol, "found out from " + v.Reason
			}
		}
	}
	for _, e := range w.Traffic {
		if e.Protocol != "" && len(w.Path.Ports) == 1 && len(port.Others) == 0 && !port.Missing {
			return e.Protocol, "seen lately"
		}
	}
	return "", "not declared; the first bytes of a connection will tell"
}

// outcomes of the traffic that was seen, most frequent first.
func outcomesOf(edges []dashboard.Edge) (outcomes map[string]uint64, statuses map[uint32]uint64) {
	outcomes, statuses = map[string]uint64{}, map[uint32]uint64{}
	for _, e := range edges {
		for k, n := range e.Outcomes {
			outcomes[k] += n
		}
		for k, n := range e.Statuses {
			if k >= 400 {
				statuses[k] += n
			}
		}
	}
	return outcomes, statuses
}

func statusText(statuses map[uint32]uint64) string {
	words := make([]string, 0, len(statuses))
	for _, k := range slices.Sorted(maps.Keys(statuses)) {
		words = append(words, fmt.Sprintf("%d (%d)", k, statuses[k]))
	}
	return strings.Join(words, ", ")
}
