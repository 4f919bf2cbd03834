package view

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/dashboard"
)

func stat(ctx context.Context, env *command.Env, args []string) int {
	o := newOptions("stat [SERVICE] [flags]", "Shows requests per second, success and latency of each service. With -o wide also its replicas: "+
		"how the balancers share requests out between them.", true)
	return o.view(ctx, env, args, func(c *client, w io.Writer, service string) error {
		var services dashboard.Answer[dashboard.Service]
		var replicas dashboard.Answer[dashboard.Replica]
		if err := c.get(ctx, "services", o.query(service), &services); err != nil {
			return err
		}
		if namespace, whole := strings.CutPrefix(service, "*."); whole && len(services.Items) == 0 {
			return command.WithHint(fmt.Errorf("nothing of namespace %s is in the mesh", printable(namespace)), "type: tulle mesh "+printable(namespace))
		}
		if service != "" && len(services.Items) == 0 {
			return command.WithHint(fmt.Errorf("no service is called %s", printable(service)), "see all of them with: tulle stat")
		}
		if o.wide() || o.json() {
			if err := c.get(ctx, "replicas", o.query(service), &replicas); err != nil {
				return err
			}
		}
		if o.json() {
			return writeJSON(w, struct {
				Range    string              `json:"range"`
				Services []dashboard.Service `json:"services"`
				Replicas []dashboard.Replica `json:"replicas"`
			}{services.Range, services.Items, replicas.Items})
		}
		if len(services.Items) == 0 {
			_, err := fmt.Fprintln(w, "Nothing runs in the mesh yet; "+begin(env, "start something: "+aWorkload))
			return err
		}
		return writeServices(w, services.Items, replicas.Items, o.wide(), colours(env))
	})
}

const aWorkload = "sudo tulle run web:8080 -- python3 -m http.server 8080"

// begin is what to type where there is nothing yet.
func begin(env *command.Env, onHost string) string {
	if env.Cluster != "" {
		return "take a namespace of cluster " + printable(env.Cluster) + " into the mesh with: tulle mesh NAMESPACE"
	}
	return onHost
}

func writeServices(w io.Writer, services []dashboard.Service, replicas []dashboard.Replica, wide, colours bool) error {
	head := append([]string{"SERVICE", "READY"}, figureHeads...)
	head = append(head, "MTLS")
	if wide {
		head = append(head, "TOTAL", "FAILED", "OPEN", "FROM", "PROTOCOL", "ADDRESSES")
	}
	t := newTable(head...)
	for _, s := range services {
		row := append([]cell{word(s.Name, strong), readiness(s)}, figures(s.Figures)...)
		row = append(row, mtls(s.MTLS))
		if wide {
			row = append(row, number(count(s.TotalRequests)), failures(s.TotalFailures), number(count(s.Open)),
				word(s.Source), word(s.Protocol), word(strings.Join(s.Addresses, " ")))
		}
		t.add(row...)
	}
	if err := t.write(w, colours); err != nil || !wide || len(replicas) == 0 {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return writeReplicas(w, replicas, colours)
}

func writeReplicas(w io.Writer, replicas []dashboard.Replica, colours bool) error {
	t := newTable(append(append([]string{"SERVICE", "REPLICA", "READY", "SHARE", "FAIR"}, figureHeads...), "TOTAL", "FAILED", "ESTIMATE", "IN-FLIGHT", "ADDRESS")...)
	for _, r := range replicas {
		ready := word("yes", good)
		if !r.Ready {
			ready = word("no", warning)
		}
		estimate := number("")
		if r.EWMA != nil {
			estimate = latency(r.EWMA)
		}
		row := append([]cell{word(r.Service, strong), word(r.Workload), ready, number(percent(r.Share)), number(percent(&r.Fair), faint)}, figures(r.Figures)...)
		t.add(append(row, number(count(r.TotalRequests)), failures(r.TotalFailures), estimate, number(count(r.InFlight)), word(r.Address))...)
	}
	return t.write(w, colours)
}

func readiness(s dashboard.Service) cell {
	if s.Replicas == 0 {
		return number("")
	}
	text := fmt.Sprintf("%d/%d", s.Ready, s.Replicas)
	switch {
	case s.Ready == 0:
		return number(text, bad)
	case s.Ready < s.Replicas:
		return number(text, warning)
	}
	return number(text)
}

func mtls(share *float64) cell {
	if share != nil && *share < 1 {
		return number(percent(share), warning)
	}
	return number(percent(share), good)
}

func edges(ctx context.Context, env *command.Env, args []string) int {
	o := newOptions("edges [SERVICE] [flags]", "Shows who calls whom: requests per second, success, latency, and whether mutual TLS protects it.", true)
	return o.view(ctx, env, args, func(c *client, w io.Writer, name string) error {
		var answer dashboard.Answer[dashboard.Edge]
		if err := c.get(ctx, "edges", o.query(name), &answer); err != nil {
			return err
		}
		if o.json() {
			return writeJSON(w, answer)
		}
		if len(answer.Items) == 0 && name != "" {
			_, err := fmt.Fprintf(w, "No traffic from or to %s in the last %s; what there is: tulle edges\n", name, answer.Range)
			return err
		}
		if len(answer.Items) == 0 {
			_, err := fmt.Fprintln(w, "No traffic yet; "+begin(env, "make some: sudo tulle run --rm client -- curl -s http://web.mesh:8080/"))
			return err
		}
		if err := writeEdges(w, answer.Items, o.wide(), colours(env)); err != nil {
			return err
		}
		return writeFailures(w, answer.Items)
	})
}

func writeEdges(w io.Writer, edges []dashboard.Edge, wide, colours bool) error {
	head := append([]string{"FROM", "TO", "SECURITY", "PROTOCOL"}, figureHeads...)
	if wide {
		head = append(head, "TOTAL", "FAILED", "OPEN", "SENT", "RECEIVED", "OUTCOMES", "IDENTITY")
	}
	t := newTable(head...)
	for _, e := range edges {
		row := append([]cell{word(e.Source, strong), word(e.Destination, strong), securityOf(&e), word(e.Protocol)}, figures(e.Figures)...)
		if wide {
			row = append(row, number(count(e.TotalRequests)), failures(e.TotalFailures), number(count(e.Open)),
				number(size(e.Sent)), number(size(e.Received)), word(counted(e.Outcomes)), word(e.SourceIdentity))
		}
		t.add(row...)
	}
	return t.write(w, colours)
}
