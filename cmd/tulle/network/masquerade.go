package network

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cni/redirect"
)

// Backends of Masquerade.
const (
	NFTables = "nftables"
	IPTables = "iptables"
)

// Masquerade lets workloads reach what the host can reach, under the host's
// own addresses: whatever comes from the mesh's networks and leaves by another
// interface than the bridge. What the host says to itself does not leave.
type Masquerade struct {
	Backend  string
	Bridge   string
	Networks []netip.Prefix
}

const loopback = "lo"

// table is ours alone, so that removing it removes exactly what we added.
const table = "tulle-host"

// Add installs the rules, replacing any of an earlier time.
func (m Masquerade) Add() error {
	if m.Backend == IPTables {
		return m.addIPTables()
	}
	c := &nftables.Conn{}
	t := &nftables.Table{Name: table, Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that the deletion below finds one
	c.DelTable(t)
	c.AddTable(t)
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	for _, n := range m.Networks {
		exprs := append(matchSource(n), matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpNeq, m.Bridge)...)
		exprs = append(exprs, matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpNeq, loopback)...)
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(exprs, &expr.Masq{})})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("add nftables table %s: %w", table, err)
	}
	return nil
}

// RemoveMasquerade takes back what Add of that backend added, if anything.
func RemoveMasquerade(backend string) error {
	if backend == IPTables {
		return removeIPTables()
	}
	c := &nftables.Conn{}
	c.DelTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table %s: %w", table, err)
	}
	return nil
}

// matchSource matches packets from p, in a table of both families.
func matchSource(p netip.Prefix) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(12)
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 8
	}
	size := uint32(p.Addr().BitLen() / 8)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: ipNet(p).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func matchInterface(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)},
	}
}

// The host's firewall may drop what it forwards (Docker sets that policy), and
// with br_netfilter even what two workloads say to each other over the bridge.
// An accept in a table of our own could not overrule that, so two rules go to
// the head of its FORWARD chain.

// forwardMark is stored with these rules, and tells them from anybody else's.
var forwardMark = []byte("tulle-host")

// DroppedForward tells which families ("ip", "ip6") drop forwarded packets by policy.
func DroppedForward() ([]string, error) {
	c := &nftables.Conn{}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var families []string
	for _, ch := range chains {
		if isForward(ch) && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
			families = append(families, familyName(ch.Table.Family))
		}
	}
	return families, nil
}

func isForward(ch *nftables.Chain) bool {
	return ch.Name == "FORWARD" && ch.Table.Name == "filter" &&
		(ch.Table.Family == nftables.TableFamilyIPv4 || ch.Table.Family == nftables.TableFamilyIPv6)
}

func familyName(f nftables.TableFamily) string {
	if f == nftables.TableFamilyIPv6 {
		return "ip6"
	}
	return "ip"
}

// AcceptForward lets packets from and to the bridge pass the FORWARD chain of
// one family.
func AcceptForward(family, bridge string) error {
	if err := RemoveForward(family); err != nil {
		return err
	}
	t := &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}
	if family == "ip6" {
		t.Family = nftables.TableFamilyIPv6
	}
	c := &nftables.Conn{}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		c.InsertRule(&nftables.Rule{
			Table: t, Chain: &nftables.Chain{Name: "FORWARD", Table: t}, UserData: forwardMark,
			Exprs: append(matchInterface(key, expr.CmpOpEq, bridge), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}),
		})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("accept forwarding in %s filter FORWARD: %w", family, err)
	}
	return nil
}

// ForwardAccepted tells whether AcceptForward's rules are there for all families.
func ForwardAccepted(families []string) (bool, error) {
	c := &nftables.Conn{}
	found := 0
	for _, f := range families {
		t := &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}
		if f == "ip6" {
			t.Family = nftables.TableFamilyIPv6
		}
		rules, err := c.GetRules(t, &nftables.Chain{Name: "FORWARD", Table: t})
		if err != nil {
			return false, fmt.Errorf("list rules of %s filter FORWARD: %w", f, err)
		}
		if slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return bytes.Equal(r.UserData, forwardMark) }) {
			found++
		}
	}
	return found == len(families), nil
}

// RemoveForward takes back what AcceptForward added, if anything.
func RemoveForward(family string) error {
	c := &nftables.Conn{}
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range chains {
		if !isForward(ch) || familyName(ch.Table.Family) != family {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return fmt.Errorf("list rules of %s filter FORWARD: %w", family, err)
		}
		for _, r := range rules {
			if bytes.Equal(r.UserData, forwardMark) {
				if err := c.DelRule(r); err != nil {
					return err
				}
			}
		}
	}
	return c.Flush()
}

// iptables: a chain of our own with one jump to it.

const chainName = "TULLE-HOST"

var iptablesFamilies = []struct {
	restore string
	is6     bool
}{{"iptables-restore", false}, {"ip6tables-restore", true}}

func (m Masquerade) addIPTables() error {
	if err := removeIPTables(); err != nil {
		return err
	}
	for _, f := range iptablesFamilies {
		var rules strings.Builder
		for _, n := range m.Networks {
			if n.Addr().Is6() == f.is6 {
				_, _ = fmt.Fprintf(&rules, "-A %s -s %s ! -o %s -j MASQUERADE\n", chainName, n.Masked(), m.Bridge)
			}
		}
		if rules.Len() == 0 {
			continue
		}
		text := fmt.Sprintf("*nat\n:%[1]s - [0:0]\n-A POSTROUTING -j %[1]s\n-A %[1]s -o %[2]s -j RETURN\n%[3]sCOMMIT\n", chainName, loopback, rules.String())
		if err := restore(f.restore, text); err != nil {
			return err
		}
	}
	return nil
}

// removeIPTables deletes the jump and the chain. Naming the chain makes it
// exist, and empties it, so that only the jump can be missing; then nothing
// was there.
func removeIPTables() error {
	for _, f := range iptablesFamilies {
		if _, err := redirect.FindProgram(f.restore); err != nil {
			continue // then nothing was added with it
		}
		jump := fmt.Sprintf("-D POSTROUTING -j %s\n", chainName)
		if err := restore(f.restore, fmt.Sprintf("*nat\n:%s - [0:0]\n%s-X %s\nCOMMIT\n", chainName, jump, chainName)); err == nil {
			continue
		}
		if err := restore(f.restore, fmt.Sprintf("*nat\n:%s - [0:0]\n-X %s\nCOMMIT\n", chainName, chainName)); err != nil {
			return err
		}
	}
	return nil
}

func restore(program, text string) error {
	path, err := redirect.FindProgram(program)
	if err != nil {
		return err
	}
	cmd := exec.Command(path, "--noflush", "--wait", "5")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}
