// Package redirect makes the kernel send a workload's TCP connections into
// that workload's proxy. It is the only code of Tulle that changes where
// packets go.
//
//	backend, reason, err := redirect.Pick(redirect.Auto, netns)
//	err = backend.Apply(redirect.Rules{})
//	err = backend.Remove()
//
// A Backend works on one network namespace, the workload's own: the process
// must have CAP_NET_ADMIN there, and CAP_SYS_ADMIN to enter it. There are three:
// eBPF (bpf/redirect.c, on a machine made ready by a Node, which takes CAP_BPF),
// nftables (netlink, no program needed) and iptables (one iptables-restore and one
// ip6tables-restore transaction). They mean the same, for IPv4 and IPv6:
//
//   - connections the workload opens go to the proxy's outbound port, save the
//     proxy's own (by uid) and those that stay inside (loopback: also calls to
//     the workload's own address);
//   - connections others open to the workload go to its inbound port;
//   - everything that Rules skips, UDP and ICMP are left alone.
//
// They fail closed. Nobody listening on the proxy's ports means "connection
// refused". With nftables and iptables, a packet that connection tracking can make
// nothing of, which the kernel would send on untranslated, is dropped: it would
// carry plaintext past the proxy; connections that were open before the first
// Apply stay if tracking knew them, and are reset otherwise. With eBPF they stay.
//
// Non-goals: UDP; stopping a workload that has CAP_NET_ADMIN, CAP_NET_RAW or
// the proxy's uid.
package redirect
