package view

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/dashboard"
	"github.com/tulle-mesh/tulle/mesh"
)

// reasons says in words what outcomes mean.
var reasons = map[string]string{
	mesh.AppFailure.String():  "the application answered with a failure",
	mesh.NoEndpoint.String():  "nobody was there to answer",
	mesh.ConnectFail.String(): "it could not be reached",
	mesh.TLSFail.String():     "one side did not prove who it is",
	mesh.Denied.String():      "it was not allowed",
	mesh.BadMessage.String():  "it was not what its protocol allows",
	mesh.Reset.String():       "it was broken off half way",
	mesh.TimedOut.String():    "it took too long",
}

// unconnected are the outcomes of what no connection came to be for.
var unconnected = []string{mesh.NoEndpoint.String(), mesh.ConnectFail.String(), mesh.TLSFail.String(), mesh.Denied.String()}

// securityOf is how an edge is protected: by nothing, where nothing ever passed.
func securityOf(e *dashboard.Edge) cell {
	n := uint64(0)
	for _, outcome := range unconnected {
		n += e.Outcomes[outcome]
	}
	if e.TotalRequests > 0 && n >= e.TotalRequests && e.Open == 0 {
		return word("none", bad)
	}
	return security(e.Security)
}

// mostFailures is how many edges are explained at once.
const mostFailures = 5

// writeFailures says in words what failed lately otherwise than by the application's
// own answers, which speak for themselves.
func writeFailures(w io.Writer, edges []dashboard.Edge) error {
	var failing []*dashboard.Edge
	for i := range edges {
		e := &edges[i]
		if others := len(e.Outcomes) > 1 || e.Outcomes[mesh.AppFailure.String()] == 0; e.Failures > 0 && others {
			failing = append(failing, e)
		}
	}
	slices.SortStableFunc(failing, func(a, b *dashboard.Edge) int { return int(min(b.Failures, 1<<40)) - int(min(a.Failures, 1<<40)) })
	for i, e := range failing {
		separator := ""
		if i == 0 {
			separator = "\n"
		}
		if i == mostFailures {
			_, err := fmt.Fprintf(w, "And %s more that failed: tulle edges -o wide\n", things(len(failing)-i, "edge"))
			return err
		}
		if _, err := fmt.Fprintf(w, "%s%s -> %s: %d of %d failed: %s. %s\n", separator, printable(e.Source), printable(e.Destination), e.Failures, e.Requests, because(e), more(e)); err != nil {
			return err
		}
	}
	return nil
}

// because says why requests of an edge failed. How often is known since the
// beginning only; it is told where there is more than one reason.
func because(e *dashboard.Edge) string {
	outcomes := slices.SortedFunc(maps.Keys(e.Outcomes), func(a, b string) int {
		if d := int(min(e.Outcomes[b], 1<<40)) - int(min(e.Outcomes[a], 1<<40)); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	var parts []string
	for _, outcome := range outcomes {
		text := outcome
		if reason, ok := reasons[outcome]; ok {
			text = fmt.Sprintf("%s (%s)", reason, outcome)
		}
		if len(outcomes) > 1 {
			text += fmt.Sprintf(" %d times", e.Outcomes[outcome])
		}
		parts = append(parts, text)
	}
	text := strings.Join(parts, ", ")
	if len(parts) > 1 {
		text = "since the beginning " + text
	}
	return printable(text)
}

// more is what to type to learn more of an edge's failures.
func more(e *dashboard.Edge) string {
	if e.SourceKind != "address" && e.DestinationKind == "service" {
		return fmt.Sprintf("Why: tulle why %s %s", printable(e.Source), printable(e.Destination))
	}
	return "See them: tulle tap --status failed"
}
