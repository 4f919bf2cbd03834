package view

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/dashboard"
)

// mostNames is how many names of others are told to who got one wrong.
const mostNames = 8

// unknown says which of the names means nobody, as far as is known, and who there
// is; "" if all mean somebody, or it cannot be told. Who is not there may come yet:
// that is no error.
func (c *client) unknown(ctx context.Context, names ...string) string {
	for _, name := range names {
		if name == "" || isAddress(name) || strings.Contains(name, "://") {
			continue
		}
		if !c.known(ctx, name) {
			return c.others(ctx, name)
		}
	}
	return ""
}

func isAddress(name string) bool {
	_, err := netip.ParseAddr(name)
	_, withPort := netip.ParseAddrPort(name)
	return err == nil || withPort == nil
}

// known tells whether a name is that of a service or replica, or was seen in traffic,
// or that this cannot be told.
func (c *client) known(ctx context.Context, name string) bool {
	q := url.Values{"name": {name}, "range": {"start"}}
	for _, view := range []string{"services", "workloads", "proxies", "edges"} {
		var answer dashboard.Answer[struct{}]
		if err := c.get(ctx, view, q, &answer); err != nil || len(answer.Items) > 0 {
			return true
		}
	}
	return false
}

// others says who there is instead of name.
func (c *client) others(ctx context.Context, name string) string {
	var services dashboard.Answer[dashboard.Service]
	if err := c.get(ctx, "services", nil, &services); err != nil {
		return ""
	}
	text := fmt.Sprintf("nobody of the mesh is called %q", printable(name))
	var names []string
	for _, s := range services.Items {
		names = append(names, printable(s.Name))
	}
	slices.Sort(names)
	switch near := command.Nearest(name, names); {
	case len(names) == 0:
		return text + ": nothing runs in it yet"
	case near != "":
		return text + "; the nearest name is " + near
	case len(names) > mostNames:
		return fmt.Sprintf("%s; there are %s and %d more: tulle stat", text, strings.Join(names[:mostNames], ", "), len(names)-mostNames)
	}
	return text + "; there are: " + strings.Join(names, ", ")
}
