package main

import (
	"errors"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace makes one.
func namespace() (*os.File, error) {
	var made *os.File
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if made, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return errors.Join(leavePortsAtOnce(), upLoopback())
	})
	return made, err
}

// leavePortsAtOnce has connections that have ended leave their ports: otherwise the
// search for a free one is what would be measured.
func leavePortsAtOnce() error {
	return os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("0"), 0)
}

func upLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// pair makes two that a veth pair joins.
func pair() (client, server *os.File, err error) {
	if client, err = namespace(); err != nil {
		return nil, nil, err
	}
	if server, err = namespace(); err != nil {
		return nil, nil, err
	}
	return client, server, join(client, server)
}

func join(client, server *os.File) error {
	err := in(client, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(server.Fd())})
	})
	for _, end := range []struct {
		ns   *os.File
		addr string
	}{{client, clientAddr}, {server, serverAddr}} {
		err = errors.Join(err, in(end.ns, func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(end.addr + "/24")
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(eth0, addr), netlink.LinkSetUp(eth0))
		}))
	}
	return err
}

// in runs do on a thread in a namespace.
func in(ns *os.File, do func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return do()
	})
}

// onThread runs do on a thread that ends with it.
func onThread(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- do()
	}()
	return <-done
}
