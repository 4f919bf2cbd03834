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

// Whoever cannot be shown is shown as somebody in a network for documentation
// (RFC 5737), and never as localhost, which applications trust.
#define UNKNOWN 0xc0000201 // 192.0.2.1

// A meshed network namespace.
struct namespace {
	__u32 generation;     // of the ports and subnets that count
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
	__type(key, __u64); // cookie of the network namespace
	__type(value, struct namespace);
} namespaces SEC(".maps");

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
#define OWN 1
#define SKIPPED 2
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

// The proxies' inbound listeners. One that closes leaves the map by itself.
struct listener_key {
	__u64 netns;
	__u32 family;
	__u32 pad;
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

static __always_inline int skips_port(const struct namespace *n, __u64 netns, __u16 direction, __u16 port)
{
	struct port_key k = {.netns = netns, .generation = n->generation, .direction = direction, .port = port};
	return bpf_map_lookup_elem(&ports, &k) != 0;
}

// peer_kind returns OWN, SKIPPED, or 0 for the rest of the world.
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

static __always_inline int outbound(struct bpf_sock_addr *ctx, int v6)
{
	if (ctx->type != SOCK_STREAM || (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_MPTCP))
		return ALLOW;
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct namespace *n = bpf_map_lookup_elem(&namespaces, &netns);
	if (!n)
		return ALLOW; // not meshed
	if (is_proxy(n))
		return ALLOW;
	struct address to = user_address(ctx, v6);
	if (is_loopback(&to))
		return leave(ctx); // inside the workload
	if (skips_port(n, netns, OUTBOUND, bpf_ntohs(ctx->user_port)) || peer_kind(n, netns, &to))
		return leave(ctx); // as the rules say; its own address is inside, too
	struct bpf_sock *sk = ctx->sk;
	if (!sk)
		return REFUSE; // cannot be; it would go out in plaintext
	if (sk->bound_dev_if) {
		// Of a device it is bound to, a socket does not reach the proxy. To let go of
		// it needs CAP_NET_RAW; refused is better than a connection that hangs.
		char none[4] = {};
		if (bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, none, sizeof(none)))
			return REFUSE;
	}
	struct note *asked = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!asked)
		return REFUSE; // no memory
	asked->address = to;
	asked->port = ctx->user_port;
	asked->role = ASKED;
	int to4 = is_mapped(&to);
	keep_source(ctx, n, v6, to4);
	// All connections of a namespace have one destination now; 64 of them have
	// ports enough. IPv6 has but one.
	struct address proxy = {{0, 0, 0, bpf_htonl(1)}};
	if (to4)
		proxy = mapped(bpf_htonl(0x7f000001 + (bpf_get_prandom_u32() & 63)));
	set_user_address(ctx, v6, &proxy);
	ctx->user_port = bpf_htons(n->outbound_port);
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

// ---- the hop to the application: bind ----

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
	if (!n || !is_proxy(n) || peer_kind(n, netns, &client) == OWN)
		return ALLOW;
	struct bpf_sock *sk = ctx->sk;
	struct note *note = sk ? bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;
	if (!note)
		return REFUSE;
	note->address = client;
	note->port = ctx->user_port;
	note->role = CLAIM;
	// IPv6 has one loopback address only, and nobody who calls an own address from
	// it is ever refused: the kernel finds no route for its RST. So the kernel
	// chooses, and takes an own address.
	struct address source = {};
	if (is_mapped(&client))
		source = mapped(bpf_htonl(HOP_SOURCE + (bpf_get_prandom_u32() & 0xff)));
	set_user_address(ctx, v6, &source);
	ctx->user_port = 0;
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

static __always_inline void send(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct note *note = sk ? bpf_sk_storage_get(&notes, sk, 0, 0) : 0;
	if (!note)
		return;
	struct handshake_key k = handshake(ctx, bpf_get_netns_cookie(ctx), 0);
	struct note copy = *note;
	if (!copy.port) // a claim of an address only
		copy.port = bpf_htons(k.client_port);
	// If there is no room the proxy finds no origin and refuses, or the application
	// is shown an unknown client.
	if (!bpf_map_update_elem(&handshakes, &k, &copy, BPF_ANY))
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
	bpf_map_delete_elem(&handshakes, &k);
}

// Refused, timed out or reset: nobody will receive it any more. Where somebody
// has, there is nothing to delete.
static __always_inline void withdraw(struct bpf_sock_ops *ctx)
{
	if (ctx->args[1] != BPF_TCP_CLOSE)
		return;
	struct handshake_key k = handshake(ctx, bpf_get_netns_cookie(ctx), 0);
	bpf_map_delete_elem(&handshakes, &k);
}

static __always_inline void capture(struct bpf_sock_ops *ctx)
{
	struct listener_key k = {.netns = bpf_get_netns_cookie(ctx), .family = ctx->family};
	struct namespace *n = bpf_map_lookup_elem(&namespaces, &k.netns);
	if (n && is_proxy(n) && ctx->local_port == n->inbound_port)
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
	struct address peer = user_address(ctx, v6);
	if (is_mapped(&peer) && (peer.word[3] & bpf_htonl(HOP_MASK)) == bpf_htonl(HOP_SOURCE) && is_meshed(ctx)) {
		peer.word[3] = bpf_htonl(UNKNOWN);
		set_user_address(ctx, v6, &peer);
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

// There is no helper for the cookie here, so each namespace has its own instance.
const volatile __u64 self;

SEC("sk_lookup")
int inbound(struct bpf_sk_lookup *ctx)
{
	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	struct address local, remote;
	if (ctx->family == AF_INET) {
		local = mapped(ctx->local_ip4);
		remote = mapped(ctx->remote_ip4);
	} else {
		volatile __u32 *l = ctx->local_ip6, *r = ctx->remote_ip6;
		local = (struct address){{l[0], l[1], l[2], l[3]}};
		remote = (struct address){{r[0], r[1], r[2], r[3]}};
	}
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
	struct listener_key k = {.netns = netns, .family = ctx->family};
	struct bpf_sock *proxy = bpf_map_lookup_elem(&listeners, &k);
	if (!proxy)
		return SK_DROP; // it is dead: the client is refused
	long err = bpf_sk_assign(ctx, proxy, 0);
	bpf_sk_release(proxy);
	return err ? SK_DROP : SK_PASS;
}

// No helper above is for GPL programs only.
char LICENSE[] SEC("license") = "Apache-2.0";
