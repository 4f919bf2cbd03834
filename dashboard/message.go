package dashboard

import (
	"errors"
	"fmt"
	"net/netip"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// Bounds of what one proxy may say. A report beyond them is refused whole.
const (
	maxReportEdges = 8192
	maxEndpoints   = 4096
	maxVerdicts    = 256
	maxStatuses    = 64   // kept apart for a row; further ones are not told apart
	maxReportCodes = 1000 // told in one edge
	maxOutcomes    = 16
	maxName        = 253     // a service, a workload, a version
	maxIdentity    = 2048    // a SPIFFE ID
	maxWord        = 32      // a protocol, an outcome, a method
	maxAddress     = 64      // "[fd84:…]:8080"
	maxPath        = 2048    // of a tap event; cut, not refused
	maxCounter     = 1 << 53 // what JSON readers hold exactly; centuries of traffic
)

// edgeKey tells one kind of a proxy's traffic from the others: the fields of
// tullev1.Edge up to protocol.
type edgeKey struct {
	inbound      bool
	service      string
	peerIdentity string
	peerWorkload string
	peerAddress  string
	security     string
	protocol     string
}

// counts are the figures that only ever grow.
type counts struct {
	requests, failures, sent, received uint64
}

func (c counts) plus(o counts) counts {
	return counts{add(c.requests, o.requests), add(c.failures, o.failures), add(c.sent, o.sent), add(c.received, o.received)}
}

func (c counts) since(o counts) counts {
	return counts{sub(c.requests, o.requests), sub(c.failures, o.failures), sub(c.sent, o.sent), sub(c.received, o.received)}
}

// split cuts a share (0 to 1) off; both parts together are exactly the whole.
func (c counts) split(share float64) (first, rest counts) {
	part := func(n uint64) uint64 { return min(n, uint64(float64(n)*share+0.5)) }
	first = counts{part(c.requests), 0, part(c.sent), part(c.received)}
	first.failures = min(first.requests, part(c.failures))
	return first, c.since(first)
}

func checkHello(h *tullev1.Hello) error {
	if h == nil {
		return fmt.Errorf("the first message must be Hello")
	}
	if err := mesh.CheckDottedName(h.Workload); err != nil {
		return fmt.Errorf("workload: %w", err)
	}
	if len(h.Version) > maxName || len(h.Redirect) > maxWord {
		return fmt.Errorf("hello of %s: version or redirect too long", h.Workload)
	}
	return nil
}

func (k edgeKey) check() error {
	if len(k.service) > maxName || len(k.peerWorkload) > maxName || len(k.peerAddress) > maxAddress || len(k.protocol) > maxWord {
		return errors.New("a label is too long")
	}
	if k.peerIdentity != "" {
		if _, err := mesh.ParseID(k.peerIdentity); err != nil {
			return err
		}
	}
	switch k.security {
	case mesh.MutualTLS.String(), mesh.Plaintext.String(), mesh.Local.String():
		return nil
	}
	return fmt.Errorf("security %q is none of mtls, plaintext, local", cut(k.security, maxWord))
}

// hostOf returns the address without its port, "" if there is none to see.
func hostOf(address string) string {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return ap.Addr().Unmap().WithZone("").String()
	}
	if a, err := netip.ParseAddr(address); err == nil {
		return a.Unmap().WithZone("").String()
	}
	return ""
}

// cut returns at most n bytes of s, whole characters only.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
