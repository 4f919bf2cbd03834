package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// listenRequest is a struct inet_diag_req_v2 (sock_diag(7)) that asks for the
// listening TCP sockets of a family, and for them only: all others would have the
// kernel walk its whole table of connections, of every namespace.
type listenRequest struct{ family byte }

const (
	requestLen = 56
	tcpListen  = 10 // TCP_LISTEN, net/tcp_states.h
)

// Len implements nl.NetlinkRequestData.
func (listenRequest) Len() int { return requestLen }

// Serialize implements nl.NetlinkRequestData.
func (r listenRequest) Serialize() []byte {
	b := make([]byte, requestLen)
	b[0], b[1] = r.family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], 1<<tcpListen)
	return b
}

// Listeners returns where the calling thread's network namespace listens by TCP.
func Listeners() ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if family == unix.AF_INET6 && !HasIPv6() {
			continue
		}
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(listenRequest{family})
		messages, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			return nil, fmt.Errorf("list listeners: %w", err)
		}
		for _, m := range messages {
			if a, ok := parseListener(m); ok {
				all = append(all, a)
			}
		}
	}
	return all, nil
}

// parseListener reads the start of a struct inet_diag_msg: family and three
// bytes more, then ports and addresses in network byte order.
func parseListener(m []byte) (netip.AddrPort, bool) {
	if len(m) < 24 {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16(m[4:])
	if m[0] == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m[8:12])), port), true
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(m[8:24])).Unmap(), port), true
}
