package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableName names the one nftables table that is ours: inet tulle.
const tableName = "tulle"

// netlinkPatience bounds the wait for the kernel's answers: a kernel short of
// memory answers a whole batch once, and not once for each message.
const netlinkPatience = 10 * time.Second

// nftablesBackend speaks netlink to nf_tables. Every change is one batch, which the
// kernel takes as a whole or not at all.
type nftablesBackend struct{ netns *os.File }

// NFTables returns the backend that uses nftables in the network namespace
// that netns refers to; nil stands for that of the calling thread at each
// call. netns must stay open as long as the backend is used.
func NFTables(netns *os.File) Backend { return &nftablesBackend{netns} }

func (b *nftablesBackend) Name() string { return "nftables" }

// Probe has the kernel take the rules under another name and drop them again
// in the same batch: none of it ever takes effect.
func (b *nftablesBackend) Probe() error {
	return b.batch(func(conn *nftables.Conn) error {
		probe := &nftables.Table{Name: tableName + "-probe", Family: nftables.TableFamilyINet}
		conn.AddTable(probe)
		addChains(conn, probe, Rules{}.withDefaults().chains())
		conn.DelTable(probe)
		return nil
	})
}

func (b *nftablesBackend) Apply(r Rules) error {
	if err := r.Validate(); err != nil {
		return err
	}
	chains := r.withDefaults().chains()
	return b.batch(func(conn *nftables.Conn) error {
		table := ourTable()
		present, err := chainsOf(conn, table)
		if err != nil {
			return err
		}
		conn.AddTable(table)
		// Chains are kept and their rules exchanged: the kernel switches a
		// chain's rules at once, while a new chain beside an old one would let
		// a packet see the new one before, and the old one after the switch.
		// Only chains of another shape, of another version, are dropped.
		if !sameShape(present, chains) {
			conn.DelTable(table)
			conn.AddTable(table)
		}
		conn.FlushTable(table)
		addChains(conn, table, chains)
		return nil
	})
}

func (b *nftablesBackend) Remove() error {
	return b.batch(func(conn *nftables.Conn) error {
		table := ourTable()
		conn.AddTable(table) // so that there is one to remove
		conn.DelTable(table)
		return nil
	})
}

// batch sends what fill puts together as one transaction.
func (b *nftablesBackend) batch(fill func(*nftables.Conn) error) error {
	return inside(b.netns, func() error {
		conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
			return c.SetDeadline(time.Now().Add(netlinkPatience))
		}))
		if err != nil {
			return explainNetlink(err)
		}
		// A kernel without nf_tables says so here; it would answer a batch
		// only once, and the library would wait for more.
		if _, err := conn.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
			return explainNetlink(err)
		}
		if err := fill(conn); err != nil {
			return explainNetlink(err)
		}
		return explainNetlink(conn.Flush())
	})
}

// explainNetlink adds what to do about an error of the kernel.
func explainNetlink(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("needs CAP_NET_ADMIN in the network namespace; run as root (sudo): %w", syscall.EPERM)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("the kernel has no nf_tables; type: modprobe nf_tables: %w", err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("the kernel's nf_tables lacks a part (needs 5.2 or newer with nat in inet tables); "+
			"type: modprobe -a nft_chain_nat nft_redir nft_ct: %w", err)
	}
	return err
}

func ourTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

func chainsOf(conn *nftables.Conn, table *nftables.Table) ([]*nftables.Chain, error) {
	all, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return nil, err
	}
	var chains []*nftables.Chain
	for _, c := range all {
		if c.Table.Name == table.Name {
			chains = append(chains, c)
		}
	}
	return chains, nil
}

// sameShape tells whether the chains can stay as they are and only have to
// get other rules.
func sameShape(present []*nftables.Chain, want []chain) bool {
	if len(present) != len(want) {
		return false
	}
	shapes := make(map[string]*nftables.Chain)
	for _, c := range present {
		shapes[c.Name] = c
	}
	for _, c := range want {
		hook, priority := nftHook(c)
		is := shapes[c.name]
		if is == nil || is.Type != nftables.ChainType(c.table) || is.Hooknum == nil || is.Priority == nil ||
			*is.Hooknum != *hook || *is.Priority != priority {
			return false
		}
	}
	return true
}

// nftHook returns where a chain hangs. Ours go before the usual chains of
// their kind, so that no other translation of addresses takes a packet first.
func nftHook(c chain) (*nftables.ChainHook, nftables.ChainPriority) {
	hook := map[hook]*nftables.ChainHook{
		prerouting: nftables.ChainHookPrerouting,
		input:      nftables.ChainHookInput,
		output:     nftables.ChainHookOutput,
	}[c.hook]
	if c.table == nat {
		return hook, *nftables.ChainPriorityNATDest - 1
	}
	return hook, *nftables.ChainPriorityFilter - 1
}

func addChains(conn *nftables.Conn, table *nftables.Table, chains []chain) {
	accept := nftables.ChainPolicyAccept
	for _, c := range chains {
		hook, priority := nftHook(c)
		added := conn.AddChain(&nftables.Chain{
			Table:    table,
			Name:     c.name,
			Type:     nftables.ChainType(c.table),
			Hooknum:  hook,
			Priority: &priority,
			Policy:   &accept,
		})
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{
				Table:    table,
				Chain:    added,
				Exprs:    append(nftMatch(r, c.hook), nftVerdict(r)...),
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.why),
			})
		}
	}
}

// loopbackIndex is the loopback's interface index in every network namespace
// (LOOPBACK_IFINDEX in the kernel); its name can be changed.
const loopbackIndex = 1

// nftMatch renders the condition of a rule. Every comparison loads into
// register 1 what it compares.
func nftMatch(r rule, at hook) []expr.Any {
	native := binary.NativeEndian.AppendUint32
	switch r.match {
	case notTCP:
		return []expr.Any{load(expr.MetaKeyL4PROTO), compare(expr.CmpOpNeq, unix.IPPROTO_TCP)}
	case tracked:
		lost := native(nil, expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED)
		return []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, mask(lost...), compare(expr.CmpOpEq, 0, 0, 0, 0)}
	case ownedBy:
		return []expr.Any{load(expr.MetaKeySKUID), compare(expr.CmpOpEq, native(nil, r.uid)...)}
	case onLoopback:
		key := expr.MetaKeyOIF
		if at.inbound() {
			key = expr.MetaKeyIIF
		}
		return []expr.Any{load(key), compare(expr.CmpOpEq, native(nil, loopbackIndex)...)}
	case dstPort:
		return append(tcp(), field(expr.PayloadBaseTransportHeader, 2, 2),
			compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(r.port)...))
	case peerIn:
		return nftPeerIn(r, at)
	}
	return tcp()
}

// nftPeerIn compares the source of packets from outside and the destination
// of those from inside.
func nftPeerIn(r rule, at hook) []expr.Any {
	family, source, destination, length := byte(unix.NFPROTO_IPV6), uint32(8), uint32(24), 16 // RFC 8200 section 3
	if r.subnet.Addr().Is4() {
		family, source, destination, length = unix.NFPROTO_IPV4, 12, 16, 4 // RFC 791 section 3.1
	}
	offset := destination
	if at.inbound() {
		offset = source
	}
	return []expr.Any{
		load(expr.MetaKeyNFPROTO), compare(expr.CmpOpEq, family),
		field(expr.PayloadBaseNetworkHeader, offset, uint32(length)),
		mask(net.CIDRMask(r.subnet.Bits(), 8*length)...),
		compare(expr.CmpOpEq, r.subnet.Addr().AsSlice()...),
	}
}

func nftVerdict(r rule) []expr.Any {
	switch r.verdict {
	case redirect:
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(r.to)},
			&expr.Redir{RegisterProtoMin: 1},
		}
	case drop:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	}
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
}

func tcp() []expr.Any {
	return []expr.Any{load(expr.MetaKeyL4PROTO), compare(expr.CmpOpEq, unix.IPPROTO_TCP)}
}

func load(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }

func field(base expr.PayloadBase, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: length}
}

func mask(m ...byte) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(m)), Mask: m, Xor: make([]byte, len(m))}
}

func compare(op expr.CmpOp, to ...byte) expr.Any {
	return &expr.Cmp{Op: op, Register: 1, Data: to}
}
