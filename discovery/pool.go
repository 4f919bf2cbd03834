package discovery

import (
	"container/list"
	"fmt"
	"net/netip"
)

// maxPool bounds the addresses of one pool: a /64 has more than could ever be
// remembered, and a used-up pool is what makes addresses come round again.
const maxPool = 1 << 16

// Pool hands out the addresses of a prefix. An owner gets the address it had
// last if that is still free; else one that was never used; else the one that
// is free for the longest time, so that whoever still has a connection or a
// cached answer for a freed address does not soon reach a stranger. A Pool is
// not safe for concurrent use.
type Pool struct {
	prefix netip.Prefix
	flag   string // what a user changes to get a larger one

	next  netip.Addr // first address never used
	last  netip.Addr // last one of the pool
	never map[netip.Addr]bool

	used  map[netip.Addr]string        // -> owner
	freed map[netip.Addr]*list.Element // -> its place in order
	order *list.List                   // of freedAddr, longest free first
	prior map[string]netip.Addr        // owner -> its freed address
}

type freedAddr struct {
	addr  netip.Addr
	owner string
}

// NewPool returns the pool of a prefix, without its first and its last address
// (an IPv4 subnet's own and broadcast ones) and without the reserved ones. flag
// is named to the user when nothing is left.
func NewPool(prefix netip.Prefix, flag string, reserved ...netip.Addr) (*Pool, error) {
	if !prefix.IsValid() || prefix != prefix.Masked() {
		return nil, fmt.Errorf("network %s: is not an aligned prefix", prefix)
	}
	hostBits := prefix.Addr().BitLen() - prefix.Bits()
	if hostBits < 2 {
		return nil, fmt.Errorf("network %s: too small, /%d is the smallest; choose a larger one with %s", prefix, prefix.Addr().BitLen()-2, flag)
	}
	p := &Pool{
		prefix: prefix,
		flag:   flag,
		next:   prefix.Addr().Next(),
		never:  make(map[netip.Addr]bool),
		used:   make(map[netip.Addr]string),
		freed:  make(map[netip.Addr]*list.Element),
		order:  list.New(),
		prior:  make(map[string]netip.Addr),
	}
	size := maxPool
	if hostBits < 16 {
		size = 1 << hostBits
	}
	p.last = offset(prefix.Addr(), size-2)
	for _, addr := range reserved {
		p.never[addr] = true
	}
	return p, nil
}

// offset returns addr + n, for n up to maxPool.
func offset(addr netip.Addr, n int) netip.Addr {
	b := addr.AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	sum, _ := netip.AddrFromSlice(b) // the length of an address
	return sum
}

// Take gives owner an address.
func (p *Pool) Take(owner string) (netip.Addr, error) {
	if addr, ok := p.prior[owner]; ok {
		p.use(addr, owner)
		return addr, nil
	}
	for p.next.Compare(p.last) <= 0 {
		addr := p.next
		p.next = addr.Next()
		_, used := p.used[addr]
		_, freed := p.freed[addr]
		if !used && !freed && !p.never[addr] {
			p.use(addr, owner)
			return addr, nil
		}
	}
	if front := p.order.Front(); front != nil {
		addr := front.Value.(freedAddr).addr
		p.use(addr, owner)
		return addr, nil
	}
	return netip.Addr{}, fmt.Errorf("network %s: all %d addresses are in use; stop some workloads, or start again with a larger network: %s",
		p.prefix, len(p.used), p.flag)
}

// Holder returns the owner of an address; "" if it is not in use.
func (p *Pool) Holder(addr netip.Addr) string { return p.used[addr] }

// Claim gives owner back the very address it had in an earlier life.
func (p *Pool) Claim(owner string, addr netip.Addr) error {
	holder, used := p.used[addr]
	switch {
	case used && holder == owner:
		return nil
	case used:
		return fmt.Errorf("address %s: belongs to %q now", addr, holder)
	case !p.prefix.Contains(addr) || addr.Compare(p.last) > 0 || addr == p.prefix.Addr() || p.never[addr]:
		return fmt.Errorf("address %s: not one of network %s; was %s changed?", addr, p.prefix, p.flag)
	}
	p.use(addr, owner)
	return nil
}

// Free takes an address back. One that is not in use is no error.
func (p *Pool) Free(addr netip.Addr) {
	owner, ok := p.used[addr]
	if !ok {
		return
	}
	delete(p.used, addr)
	p.freed[addr] = p.order.PushBack(freedAddr{addr: addr, owner: owner})
	p.prior[owner] = addr // an owner's last one is the one it gets again
}

func (p *Pool) use(addr netip.Addr, owner string) {
	if place, ok := p.freed[addr]; ok {
		p.order.Remove(place)
		delete(p.freed, addr)
		if was := place.Value.(freedAddr).owner; p.prior[was] == addr {
			delete(p.prior, was)
		}
	}
	p.used[addr] = owner
}
