// The kernel's side of the eBPF redirect: sends the TCP connections of meshed
// network namespaces into their proxies, and lets both ends of a connection see
// the addresses they would see without. package redirect (cni/redirect) loads it.
//
//      application                              proxy
//  connect  note what was asked for, go to 127.0.0.x:4140 instead
//  sockops  the note travels by the handshake   it becomes the accepted socket's
//  getpeername: what was asked for              getsockname: where the client meant to go
//
//      application                              proxy
//                     inbound (sk_lookup): a SYN from outside goes to port 4143
//                                               bind  "on behalf of this client"
//  the note becomes the accepted socket's       sockops  it travels by the handshake
//  getpeername: the client                      connect, to the application
//
// A namespace may also be one that workloads share with others who are not meshed:
// the host's. There only the processes of a workload's cgroup have their connections
// sent to its proxy, by programs of their own, and only connections to the ports that
// it has named are steered. Such a workload is a member; see struct member_key.
//
// All but sk_lookup hang at the root of cgroup2, see every socket of the machine
// and have to let those of other namespaces alone, soon. Without CAP_PERFMON the
// verifier refuses pointers with variable offsets and mixed ones (Spectre v1).
//
// Linux 5.15, where network namespaces have cookies in all of these hooks.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25

// Verdicts of connect and bind; the others have no say.
#define REFUSE 0 // the system call fails with EPERM
#define ALLOW 1

// An IPv6 address in network byte order; IPv4 is mapped (::ffff:a.b.c.d).
struct address {
	__u32 word[4];
};

#define MAPPED bpf_htonl(0xffff)

// IPv4 hops from a proxy to its application come from 127.84.0.0/24. No
// application binds there, loopback ports in TIME_WAIT can be used again, and there
// are 256 times as many of them.
#define HOP_SOURCE 0x7f540000
#define HOP_MASK 0xffff0000

// IPv6 hops come from the very address that they go to: nobody else does, but for
// the workload itself. Where workloads share a namespace anybody in it may, and they
// come from an address that nobody else has, fd84:7475:6c6c:7f54::1, which
// cmd/tulle/network gives to the host. So a hop is known by its source alone, also
// where its note is lost: otherwise it would be led back to the proxy.
#define HOP_SOURCE6 {{bpf_htonl(0xfd847475), bpf_htonl(0x6c6c7f54), 0, bpf_htonl(1)}}

// Whoever cannot be shown is shown as somebody in a network for documentation
// (RFC 5737 and 3849), and never as localhost, which applications trust.
#define UNKNOWN 0xc0000201                                         // 192.0.2.1
#define UNKNOWN6 {{bpf_htonl(0x20010db8), 0, 0, bpf_htonl(1)}} // 2001:db8::1

// A meshed network namespace, a member of a shared one, or such a shared one.
struct namespace {
	__u32 generation;     // of the ports and subnets that count; 0: shared
	__u32 proxy_uid;      // as numbered in the first user namespace
	__u16 outbound_port;  // host byte order
	__u16 inbound_port;   // host byte order
	__u32 source4;          // what its connections come from, 0: whatever the kernel takes
	struct address source6; // the same
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64); // cookie of the network namespace, or the member's number
	__type(value, struct namespace);
} namespaces SEC(".maps");

// What tells the members of a shared namespace apart: the addresses that each has
// there for itself, as (address, 0), and the ports that it serves, as (0, port).
// To its proxy a member's IPv4 connections go by loopback addresses that are its
// own too: 127.X.Y.1 to .64 of one whose address ends in X.Y, kept as 127.X.Y.0.
struct member_key {
	__u64 netns;
	struct address address;
	__u16 port; // host byte order
	__u16 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct member_key);
	__type(value, __u64); // the member's number
} members SEC(".maps");

// Ports that are not redirected.
#define INBOUND 0
#define OUTBOUND 1
struct port_key {
	__u64 netns;
	__u32 generation;
	__u16 direction;
	__u16 port; // host byte order
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, __u8);
} ports SEC(".maps");

// Peers that are not redirected: skipped subnets, and the namespace's own addresses.
// MESH are, like all others: a member calls them from its own address.
#define OWN 1
#define SKIPPED 2
#define MESH 3
struct subnet_key {
	__u32 bits; // that count of what follows
	__u32 generation;
	__u64 netns;
	struct address address;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct subnet_key);
	__type(value, __u8);
} subnets SEC(".maps");

// The proxies' inbound listeners, of members also the outbound ones. One that closes
// leaves the map by itself.
struct listener_key {
	__u64 netns;
	__u32 family;
	__u32 direction;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 16384);
	__type(key, struct listener_key);
	__type(value, __u64);
} listeners SEC(".maps");

// What is noted of a socket. It goes when the socket does.
struct note {
	struct address address;
	__u16 port; // network byte order
	__u16 role;
};
#define ASKED 1  // the application's, connecting: where it thinks it goes
#define ORIGIN 2 // the same, on the connection that the proxy accepted
#define CLAIM 3  // the proxy's, connecting to the application: on behalf of whom
#define CLIENT 4 // the same, on the connection that the application accepted

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct note);
} notes SEC(".maps");

// Notes on their way from the connecting socket to the accepted one, which does
// not exist before the handshake is done. Not LRU: the oldest may be one that
// waits for room in an accept queue.
struct handshake_key {
	__u64 netns;
	struct address client, server;
	__u16 client_port, server_port; // host byte order
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct handshake_key);
	__type(value, struct note);
} handshakes SEC(".maps");

// How many of those each namespace has, and each member: a workload that lets its
// handshakes stand open leaves the others their room.
#define MAX_PENDING 8192
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64); // as in namespaces
	__type(value, __s64);
} pending SEC(".maps");

// Which of several loaders has loaded last: cni/redirect reads and writes it.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} revision SEC(".maps");

static __always_inline struct address mapped(__u32 ip4)
{
	return (struct address){{0, 0, MAPPED, ip4}};
}

static __always_inline int is_mapped(const struct address *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == MAPPED;
}

// 127.0.0.0/8 or ::1, and what connect takes for it: 0.0.0.0 or ::.
static __always_inline int is_loopback(const struct address *a)
{
	if (is_mapped(a))
		return !a->word[3] || (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !a->word[0] && !a->word[1] && !a->word[2] && (!a->word[3] || a->word[3] == bpf_htonl(1));
}

static __always_inline int same(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

static __always_inline int is_hop4(const struct address *a)
{
	return is_mapped(a) && (a->word[3] & bpf_htonl(HOP_MASK)) == bpf_htonl(HOP_SOURCE);
}

static __always_inline int is_hop6(const struct address *a)
{
	struct address hop = HOP_SOURCE6;
	return same(a, &hop);
}

static __always_inline int skips_port(const struct namespace *n, __u64 netns, __u16 direction, __u16 port)
{
	struct port_key k = {.netns = netns, .generation = n->generation, .direction = direction, .port = port};
	return bpf_map_lookup_elem(&ports, &k) != 0;
}

static __always_inline int is_shared(const struct namespace *n)
{
	return !n->generation;
}

// member returns whose an address or a port of a shared namespace is; 0: nobody's.
static __always_inline __u64 member(__u64 netns, const struct address *a, __u16 port)
{
	struct member_key k = {.netns = netns, .address = *a, .port = port};
	__u64 *number = bpf_map_lookup_elem(&members, &k);
	return number ? *number : 0;
}

// peer_kind returns OWN, SKIPPED, MESH, or 0 for the rest of the world.
static __always_inline int peer_kind(const struct namespace *n, __u64 netns, const struct address *a)
{
	struct subnet_key k = {.bits = 32 + 64 + 128, .generation = n->generation, .netns = netns, .address = *a};
	__u8 *kind = bpf_map_lookup_elem(&subnets, &k);
	return kind ? *kind : 0;
}

static __always_inline int is_proxy(const struct namespace *n)
{
	return (__u32)bpf_get_current_uid_gid() == n->proxy_uid;
}

// ---- addresses of a system call ----

// clang makes `ctx->user_ip6[i]` relative to a pointer it has moved, and merges
// neighbouring loads: the verifier wants neither.
#define LOAD(ctx, field) ({ \
	__u32 v_; \
	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(v_) : "r"(ctx), "i"(__builtin_offsetof(struct bpf_sock_addr, field))); \
	v_; })
#define STORE(ctx, field, v) \
	asm volatile("*(u32 *)(%0 + %1) = %2" : : "r"(ctx), "i"(__builtin_offsetof(struct bpf_sock_addr, field)), "r"((__u32)(v)) : "memory")

static __always_inline struct address user_address(struct bpf_sock_addr *ctx, int v6)
{
	if (!v6)
		return mapped(ctx->user_ip4);
	return (struct address){{LOAD(ctx, user_ip6[0]), LOAD(ctx, user_ip6[1]), LOAD(ctx, user_ip6[2]), LOAD(ctx, user_ip6[3])}};
}

static __always_inline void set_user_address(struct bpf_sock_addr *ctx, int v6, const struct address *a)
{
	if (!v6) {
		STORE(ctx, user_ip4, a->word[3]);
		return;
	}
	STORE(ctx, user_ip6[0], a->word[0]);
	STORE(ctx, user_ip6[1], a->word[1]);
	STORE(ctx, user_ip6[2], a->word[2]);
	STORE(ctx, user_ip6[3], a->word[3]);
}

// ---- outbound: connect ----

// A socket that is used again, for another connection that is not redirected,
// must not keep the old note.
static __always_inline int leave(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	if (sk) {
		struct note *old = bpf_sk_storage_get(&notes, sk, 0, 0);
		if (old && old->role == ASKED)
			bpf_sk_storage_delete(&notes, sk);
	}
	return ALLOW;
}

struct sockaddr4 {
	__u16 family, port;
	__u32 ip4;
	__u64 zero;
};

struct sockaddr6 {
	__u16 family, port;
	__u32 flow;
	struct address address;
	__u32 scope;
};

// The application sees, and tells others, its own address: without this it would
// be 127.0.0.1. A socket that is bound to a port already stays as it is.
static __always_inline void keep_source(struct bpf_sock_addr *ctx, const struct namespace *n, int v6, int to4)
{
	// Both are read, and volatile: a pointer to either is one of those mixed ones.
	__u32 source4 = *(volatile __u32 *)&n->source4;
	volatile const __u32 *word = n->source6.word;
	struct address source = {{word[0], word[1], word[2], word[3]}};
	if (to4)
		source = mapped(source4);
	if (!source.word[3])
		return;
	if (v6) {
		struct sockaddr6 sa = {.family = AF_INET6, .address = source};
		bpf_bind(ctx, (void *)&sa, sizeof(sa));
	} else {
		struct sockaddr4 sa = {.family = AF_INET, .ip4 = source4};
		bpf_bind(ctx, (void *)&sa, sizeof(sa));
	}
}

// What a member says to an own address of the host stays inside, also where that
// is a port that it serves: there the note gets it past the proxy.
static __always_inline int stay_inside(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct note *note = sk ? bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;
	if (note)
		*note = (struct note){.role = CLAIM}; // on behalf of itself
	return ALLOW;
}

// Of a device it is bound to, a socket does not reach the proxy. To let go of
// it needs CAP_NET_RAW; refused is better than a connection that hangs.
static __always_inline int leave_device(struct bpf_sock_addr *ctx, struct bpf_sock *sk)
{
	char none[4] = {};
	return sk->bound_dev_if ? bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, none, sizeof(none)) : 0;
}

static __always_inline int to_proxy(struct bpf_sock_addr *ctx, const struct address *to, const struct namespace *n)
{
	struct bpf_sock *sk = ctx->sk;
	if (!sk || leave_device(ctx, sk))
		return REFUSE; // it would go out in plaintext
	struct note *asked = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!asked)
		return REFUSE; // no memory
	asked->address = *to;
	asked->port = ctx->user_port;
	asked->role = ASKED;
	ctx->user_port = bpf_htons(n->outbound_port);
	return ALLOW;
}

static __always_inline int is_stream(struct bpf_sock_addr *ctx)
{
	return ctx->type == SOCK_STREAM && (ctx->protocol == IPPROTO_TCP || ctx->protocol == IPPROTO_MPTCP);
}

// All connections of a namespace have one destination now, or a member's; 64 of
// them have ports enough. IPv6 has but one.
static __always_inline struct address proxy_address4(__u32 base)
{
	return mapped(bpf_htonl(base + 1 + (bpf_get_prandom_u32() & 63)));
}

static __always_inline int outbound(struct bpf_sock_addr *ctx, int v6)
{
	if (!is_stream(ctx))
		return ALLOW;
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct namespace *n = bpf_map_lookup_elem(&namespaces, &netns);
	if (!n || is_shared(n) || is_proxy(n))
		return ALLOW; // not meshed; members have programs of their own
	struct address to = user_address(ctx, v6);
	if (is_loopback(&to))
		return leave(ctx); // inside the workload
	if (skips_port(n, netns, OUTBOUND, bpf_ntohs(ctx->user_port)) || peer_kind(n, netns, &to))
		return leave(ctx); // as the rules say; its own address is inside, too
	if (to_proxy(ctx, &to, n) == REFUSE)
		return REFUSE;
	int to4 = is_mapped(&to);
	keep_source(ctx, n, v6, to4);
	struct address proxy = {{0, 0, 0, bpf_htonl(1)}};
	if (to4)
		proxy = proxy_address4(0x7f000000);
	set_user_address(ctx, v6, &proxy);
	return ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return outbound(ctx, 0);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return outbound(ctx, 1);
}

// Whose instance a program is: at sk_lookup the cookie of the network namespace, which
// there is no helper for; at a member's cgroup the member's number.
const volatile __u64 self;

// What connects in a member's cgroup. Its proxy is not in there.
static __always_inline int member_outbound(struct bpf_sock_addr *ctx, int v6)
{
	if (!is_stream(ctx))
		return ALLOW;
	__u64 number = self, netns = bpf_get_netns_cookie(ctx);
	struct namespace *n = bpf_map_lookup_elem(&namespaces, &number);
	struct namespace *host = bpf_map_lookup_elem(&namespaces, &netns);
	if (!n || !host)
		return REFUSE; // rules that are half there, or a process that has gone to another namespace
	struct address to = user_address(ctx, v6);
	if (is_loopback(&to))
		return leave(ctx); // as without
	int kind = peer_kind(n, number, &to);
	if (kind == OWN)
		return stay_inside(ctx);
	int to4 = is_mapped(&to);
	struct address proxy = {{n->source6.word[0], n->source6.word[1], n->source6.word[2], n->source6.word[3]}};
	if (to4)
		proxy = proxy_address4(0x7f000000 | (bpf_ntohl(n->source4) & 0xffff) << 8);
	if (!proxy.word[3])
		return REFUSE; // a mesh without IPv6
	if (to_proxy(ctx, &to, n) == REFUSE)
		return REFUSE;
	keep_source(ctx, kind == MESH ? n : host, v6, to4);
	set_user_address(ctx, v6, &proxy);
	return ALLOW;
}

SEC("cgroup/connect4")
int member_connect4(struct bpf_sock_addr *ctx)
{
	return member_outbound(ctx, 0);
}

SEC("cgroup/connect6")
int member_connect6(struct bpf_sock_addr *ctx)
{
	return member_outbound(ctx, 1);
}

// ---- the hop to the application: bind ----

// Of a member's proxy a bind to a member's address may be either. It means the
// address itself with the ports that proxies listen on, and with this one, for which
// the kernel then finds another.
#define FROM 1

static __always_inline int is_members(struct bpf_sock_addr *ctx, const struct namespace *n, __u64 netns, const struct address *a)
{
	if (!member(netns, a, 0))
		return 0;
	__u16 port = bpf_ntohs(LOAD(ctx, user_port));
	if (port == FROM)
		STORE(ctx, user_port, 0);
	return port == FROM || skips_port(n, netns, INBOUND, port);
}

// A proxy that binds to an address that is not its own says on whose behalf it
// is about to connect. Nobody else can bind there.
static __always_inline int claim(struct bpf_sock_addr *ctx, int v6)
{
	if (ctx->type != SOCK_STREAM)
		return ALLOW;
	struct address client = user_address(ctx, v6);
	if (is_loopback(&client))
		return ALLOW; // a listener
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct namespace *n = bpf_map_lookup_elem(&namespaces, &netns);
	if (!n || !is_proxy(n))
		return ALLOW;
	if (is_shared(n) ? is_members(ctx, n, netns, &client) : peer_kind(n, netns, &client) == OWN)
		return ALLOW; // a listener, or a connection from there
	struct bpf_sock *sk = ctx->sk;
	struct note *note = sk ? bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;
	if (!note)
		return REFUSE;
	note->address = client;
	note->port = ctx->user_port;
	note->role = CLAIM;
	// IPv6 has one loopback address only, and nobody who calls an own address from
	// it is ever refused: the kernel finds no route for its RST. So the kernel
	// chooses, and takes that own address.
	struct address source = {}, shared = HOP_SOURCE6;
	if (is_mapped(&client))
		source = mapped(bpf_htonl(HOP_SOURCE + (bpf_get_prandom_u32() & 0xff)));
	else if (is_shared(n))
		source = shared;
	set_user_address(ctx, v6, &source);
	STORE(ctx, user_port, 0);
	return ALLOW;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	return claim(ctx, 0);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	return claim(ctx, 1);
}

// ---- from one end of a handshake to the other: sockops ----

static __always_inline struct handshake_key handshake(struct bpf_sock_ops *ctx, __u64 netns, int accepted)
{
	struct address local, remote;
	if (ctx->family == AF_INET) {
		local = mapped(ctx->local_ip4);
		remote = mapped(ctx->remote_ip4);
	} else {
		// volatile: merged loads are refused
		volatile __u32 *l = ctx->local_ip6, *r = ctx->remote_ip6;
		local = (struct address){{l[0], l[1], l[2], l[3]}};
		remote = (struct address){{r[0], r[1], r[2], r[3]}};
	}
	__u16 local_port = ctx->local_port, remote_port = bpf_ntohl(ctx->remote_port);
	struct handshake_key k = {.netns = netns};
	k.client = accepted ? remote : local;
	k.server = accepted ? local : remote;
	k.client_port = accepted ? remote_port : local_port;
	k.server_port = accepted ? local_port : remote_port;
	return k;
}

// account returns whose handshake it is: the namespace's, or the member's whose proxy
// is called, or calls. It is told from the addresses, and is the same at both ends.
static __always_inline __u64 account(__u64 netns, const struct handshake_key *k, const struct note *note)
{
	struct namespace *n = bpf_map_lookup_elem(&namespaces, &netns);
	if (!n || !is_shared(n) || same(&note->address, &k->client))
		return netns; // also a member's that stays inside, on behalf of itself
	struct address to = k->server;
	__u16 port = 0;
	if (note->role == CLAIM) {
		port = k->server_port; // a member serves it
		to = (struct address){};
	} else if (is_mapped(&to)) {
		to.word[3] &= bpf_htonl(0xffffff00); // 127.X.Y.0
	}
	__u64 number = member(netns, &to, port);
	return number ? number : netns;
}

// enough takes a place of an account's for a handshake, and give_back gives it back.
static __always_inline int enough(__u64 who)
{
	__s64 none = 0, *count = bpf_map_lookup_elem(&pending, &who);
	if (!count) {
		bpf_map_update_elem(&pending, &who, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&pending, &who);
	}
	if (!count || *(volatile __s64 *)count >= MAX_PENDING)
		return 0;
	__sync_fetch_and_add(count, 1);
	return 1;
}

static __always_inline void give_back(__u64 who)
{
	__s64 *count = bpf_map_lookup_elem(&pending, &who);
	if (count && *(volatile __s64 *)count > 0) // none of a member's that has left meanwhile
		__sync_fetch_and_add(count, -1);
}

// finish ends a handshake, unless somebody has done so already.
static __always_inline void finish(__u64 netns, const struct handshake_key *k, const struct note *sent)
{
	__u64 who = account(netns, k, sent);
	if (!bpf_map_delete_elem(&handshakes, k))
		give_back(who);
}

static __always_inline void send(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct note *note = sk ? bpf_sk_storage_get(&notes, sk, 0, 0) : 0;
	if (!note)
		return;
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct handshake_key k = handshake(ctx, netns, 0);
	struct note copy = *note;
	if (!copy.port) // a claim of an address only
		copy.port = bpf_htons(k.client_port);
	if (!copy.address.word[3]) // on behalf of itself
		copy.address = k.client;
	struct note *old = bpf_map_lookup_elem(&handshakes, &k);
	if (old) // one of the same name that nobody has withdrawn
		finish(netns, &k, old);
	// If there is no room the proxy finds no origin and refuses, or the application
	// is shown an unknown client.
	__u64 who = account(netns, &k, &copy);
	if (!enough(who))
		return;
	if (bpf_map_update_elem(&handshakes, &k, &copy, BPF_NOEXIST))
		give_back(who);
	else
		bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void receive(struct bpf_sock_ops *ctx)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&namespaces, &netns))
		return;
	struct bpf_sock *sk = ctx->sk;
	if (!sk)
		return;
	struct handshake_key k = handshake(ctx, netns, 1);
	struct note *sent = bpf_map_lookup_elem(&handshakes, &k);
	if (!sent)
		return;
	struct note *note = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (note) {
		*note = *sent;
		note->role = sent->role == ASKED ? ORIGIN : CLIENT;
	}
	finish(netns, &k, sent);
}

// Refused, timed out or reset: nobody will receive it any more. Where somebody
// has, there is nothing to end.
static __always_inline void withdraw(struct bpf_sock_ops *ctx)
{
	if (ctx->args[1] != BPF_TCP_CLOSE)
		return;
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct handshake_key k = handshake(ctx, netns, 0);
	struct note *sent = bpf_map_lookup_elem(&handshakes, &k);
	if (sent)
		finish(netns, &k, sent);
}

static __always_inline struct address local_address(struct bpf_sock_ops *ctx)
{
	if (ctx->family == AF_INET)
		return mapped(ctx->local_ip4);
	volatile __u32 *l = ctx->local_ip6; // merged loads are refused
	return (struct address){{l[0], l[1], l[2], l[3]}};
}

static __always_inline void capture(struct bpf_sock_ops *ctx)
{
	struct listener_key k = {.netns = bpf_get_netns_cookie(ctx), .family = ctx->family};
	struct namespace *n = bpf_map_lookup_elem(&namespaces, &k.netns);
	if (!n || !is_proxy(n))
		return;
	if (is_shared(n)) {
		struct address local = local_address(ctx);
		k.netns = member(k.netns, &local, 0);
		if (!k.netns)
			return;
		if (ctx->local_port == n->outbound_port)
			k.direction = OUTBOUND;
		else if (ctx->local_port != n->inbound_port)
			return;
	} else if (ctx->local_port != n->inbound_port) {
		return;
	}
	bpf_sock_hash_update(ctx, &listeners, &k, BPF_ANY);
}

SEC("sockops")
int carry(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB: // before the SYN; source address and port are chosen
		send(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: // before accept() can return it
		receive(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB: // asked for by send
		withdraw(ctx);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		capture(ctx);
		break;
	}
	return 1;
}

// ---- what a socket's ends are called ----

static __always_inline int name(struct bpf_sock_addr *ctx, int v6, const struct note *note)
{
	if (v6 || is_mapped(&note->address)) {
		set_user_address(ctx, v6, &note->address);
		ctx->user_port = note->port;
	}
	return ALLOW;
}

static __always_inline int own_name(struct bpf_sock_addr *ctx, int v6)
{
	struct bpf_sock *sk = ctx->sk;
	struct note *note = sk ? bpf_sk_storage_get(&notes, sk, 0, 0) : 0;
	if (note && note->role == ORIGIN)
		return name(ctx, v6, note);
	return ALLOW;
}

static __always_inline int is_meshed(struct bpf_sock_addr *ctx)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	return bpf_map_lookup_elem(&namespaces, &netns) != 0;
}

static __always_inline int peer_name(struct bpf_sock_addr *ctx, int v6)
{
	struct bpf_sock *sk = ctx->sk;
	if (!sk)
		return ALLOW;
	struct note *note = bpf_sk_storage_get(&notes, sk, 0, 0);
	if (note && (note->role == ASKED || note->role == CLIENT))
		return name(ctx, v6, note);
	// A hop of the proxy whose note is lost.
	struct address peer = user_address(ctx, v6), unknown6 = UNKNOWN6;
	if (is_hop4(&peer) && is_meshed(ctx)) {
		peer.word[3] = bpf_htonl(UNKNOWN);
		set_user_address(ctx, v6, &peer);
	} else if (is_hop6(&peer) && is_meshed(ctx)) {
		set_user_address(ctx, v6, &unknown6);
	}
	return ALLOW;
}

SEC("cgroup/getsockname4")
int getsockname4(struct bpf_sock_addr *ctx)
{
	return own_name(ctx, 0);
}

SEC("cgroup/getsockname6")
int getsockname6(struct bpf_sock_addr *ctx)
{
	return own_name(ctx, 1);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return peer_name(ctx, 0);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return peer_name(ctx, 1);
}

// ---- inbound: sk_lookup ----

static __always_inline int steer(struct bpf_sk_lookup *ctx, __u64 netns, __u32 direction)
{
	struct listener_key k = {.netns = netns, .family = ctx->family, .direction = direction};
	struct bpf_sock *proxy = bpf_map_lookup_elem(&listeners, &k);
	if (!proxy)
		return SK_DROP; // it is dead: the client is refused
	long err = bpf_sk_assign(ctx, proxy, 0);
	bpf_sk_release(proxy);
	return err ? SK_DROP : SK_PASS;
}

// What the connecting socket has sent along; 0: nothing.
static __always_inline int noted(struct bpf_sk_lookup *ctx, __u64 netns, const struct address *local, const struct address *remote)
{
	struct handshake_key k = {.netns = netns, .client = *remote, .server = *local};
	k.client_port = bpf_ntohs(ctx->remote_port);
	k.server_port = ctx->local_port;
	struct note *note = bpf_map_lookup_elem(&handshakes, &k);
	return note ? note->role : 0;
}

// A port of the proxies, each of which has it at its member's own addresses, if it
// is not somebody's who has it at another one.
static __always_inline int to_proxy_port(struct bpf_sk_lookup *ctx, __u64 netns, const struct address *local, const struct address *remote)
{
	__u64 number;
	if (is_loopback(local)) {
		struct address base = *local;
		base.word[3] &= bpf_htonl(0xffffff00);
		number = member(netns, &base, 0);
		return number ? steer(ctx, number, OUTBOUND) : SK_PASS;
	}
	if (!member(netns, local, 0))
		return SK_PASS;
	// IPv6 comes from the member itself, to where its proxy listens. Nobody else does.
	return noted(ctx, netns, local, remote) == ASKED ? SK_PASS : SK_DROP;
}

static __always_inline void ends(struct bpf_sk_lookup *ctx, struct address *local, struct address *remote)
{
	if (ctx->family == AF_INET) {
		*local = mapped(ctx->local_ip4);
		*remote = mapped(ctx->remote_ip4);
	} else {
		volatile __u32 *l = ctx->local_ip6, *r = ctx->remote_ip6;
		*local = (struct address){{l[0], l[1], l[2], l[3]}};
		*remote = (struct address){{r[0], r[1], r[2], r[3]}};
	}
}

SEC("sk_lookup")
int inbound(struct bpf_sk_lookup *ctx)
{
	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	struct address local, remote;
	ends(ctx, &local, &remote);
	// The device does not tell: for a workload that calls its own address it is
	// the one that has the address.
	if (is_loopback(&remote) || same(&local, &remote))
		return SK_PASS; // inside the workload, or the proxy's hop to it
	__u64 netns = self;
	struct namespace *n = bpf_map_lookup_elem(&namespaces, &netns);
	if (!n)
		return SK_DROP; // rules that are half there
	if (skips_port(n, netns, INBOUND, ctx->local_port) || peer_kind(n, netns, &remote))
		return SK_PASS; // as the rules say
	return steer(ctx, netns, INBOUND);
}

// In a shared namespace only the ports that members have named are steered; from
// wherever, since one member's calls to another come from this machine, too.
SEC("sk_lookup")
int member_inbound(struct bpf_sk_lookup *ctx)
{
	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	__u64 netns = self;
	struct namespace *n = bpf_map_lookup_elem(&namespaces, &netns);
	if (!n)
		return SK_PASS; // there is no member
	struct address local, remote, any = {};
	if (ctx->local_port == n->outbound_port || ctx->local_port == n->inbound_port) {
		ends(ctx, &local, &remote);
		return to_proxy_port(ctx, netns, &local, &remote);
	}
	ends(ctx, &local, &remote);
	if (is_hop6(&local))
		return SK_DROP; // nobody is called by it
	if (is_loopback(&remote))
		return SK_PASS; // as without, or the proxy's hop to its application
	__u64 number = member(netns, &any, ctx->local_port);
	if (!number && !member(netns, &local, 0))
		return SK_PASS; // not meshed
	if (noted(ctx, netns, &local, &remote) == CLAIM)
		return SK_PASS; // somebody who stays inside, or the hop over IPv6
	// That hop where there was no room for its note. Anybody can put this address on
	// what he sends, but where the host has it the answer goes to the host itself, which
	// refuses it: no connection comes of it, and nothing is read. A host that did not
	// have it when a member entered has no such hops.
	if (is_hop6(&remote))
		return peer_kind(n, netns, &remote) == OWN ? SK_PASS : SK_DROP;
	if (!number) // whoever calls a member's address speaks mutual TLS, which nobody else here does
		return skips_port(n, netns, INBOUND, ctx->local_port) ? SK_PASS : SK_DROP;
	return steer(ctx, number, INBOUND);
}

// No helper above is for GPL programs only.
char LICENSE[] SEC("license") = "Apache-2.0";
