// Package redirect makes the kernel send a workload's TCP connections into
// that workload's proxy. It is the only code of Tulle that changes where
// packets go.
//
//	backend, reason, err := redirect.Pick(redirect.Auto, netns)
//	err = backend.Apply(redirect.Rules{})
//	err = backend.Remove()
//
// A Backend works on one network namespace, the workload's own: the process
// must have CAP_NET_ADMIN there, and CAP_SYS_ADMIN to enter it. There are two:
// nftables (netlink, no program needed) and iptables (one iptables-restore and
// one ip6tables-restore transaction). An eBPF backend will stand before them
// in Pick. They write the same rules, for IPv4 and IPv6:
//
//   - connections the workload opens go to the proxy's outbound port, save the
//     proxy's own (by uid) and those that stay inside (loopback: also calls to
//     the workload's own address);
//   - connections others open to the workload go to its inbound port;
//   - everything that Rules skips, UDP and ICMP are left alone.
//
// It fails closed. Nobody listening on the proxy's ports means "connection
// refused". A packet that connection tracking can make nothing of, which the
// kernel would send on untranslated, is dropped: it would carry plaintext past
// the proxy. Connections that were open before the first Apply stay if
// tracking knew them, and are reset otherwise.
//
// Non-goals: UDP; stopping a workload that has CAP_NET_ADMIN, CAP_NET_RAW or
// the proxy's uid.
package redirect
