package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Config describes a Server.
type Config struct {
	// Listen are the addresses to serve on, each by UDP and by TCP.
	Listen []netip.AddrPort
	// Domain is the mesh's top-level domain, "mesh".
	Domain string
	Names  Names
	// Upstreams returns the resolvers for all other names, best first. It is
	// called for each such query, so that a change on the host is seen at once.
	Upstreams func() []netip.AddrPort
}

// Bounds on what clients can make us hold.
const (
	maxForwards    = 256              // queries waiting for an upstream
	maxConns       = 128              // TCP connections
	idleTimeout    = 10 * time.Second // of a TCP connection
	tryTimeout     = 2 * time.Second  // for one upstream
	forwardTimeout = 4 * time.Second  // in all: below the 5 s after which clients ask again
)

// Server answers on its listeners while Run runs.
type Server struct {
	cfg      Config
	packets  []*net.UDPConn
	streams  []*net.TCPListener
	forwards chan struct{} // a token per query under way
	conns    chan struct{} // a token per TCP connection
}

// Listen opens every listener, so that a taken port is known before anything
// is promised.
func Listen(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, forwards: make(chan struct{}, maxForwards), conns: make(chan struct{}, maxConns)}
	for _, addr := range cfg.Listen {
		pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		if err != nil {
			s.close()
			return nil, fmt.Errorf("dns: %w", err)
		}
		s.packets = append(s.packets, pc)
		// The same port again: an ephemeral one, in tests, is known only now.
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(pc.LocalAddr().(*net.UDPAddr).AddrPort()))
		if err != nil {
			s.close()
			return nil, fmt.Errorf("dns: %w", err)
		}
		s.streams = append(s.streams, l)
	}
	return s, nil
}

func (s *Server) close() {
	for _, pc := range s.packets {
		_ = pc.Close()
	}
	for _, l := range s.streams {
		_ = l.Close()
	}
}

// Run serves until ctx ends, and returns after every goroutine has ended.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for _, pc := range s.packets {
		wg.Go(func() { s.servePackets(ctx, pc, &wg) })
	}
	for _, l := range s.streams {
		wg.Go(func() { s.serveStreams(ctx, l, &wg) })
	}
	<-ctx.Done()
	s.close()
	wg.Wait()
	return nil
}

func (s *Server) servePackets(ctx context.Context, pc *net.UDPConn, wg *sync.WaitGroup) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		response, q, v := answer(buf[:n], s.cfg.Domain, s.cfg.Names)
		switch v {
		case respond:
			_, _ = pc.WriteToUDPAddrPort(q.truncate(response), from)
		case forward:
			msg := slices.Clone(buf[:n])
			select {
			case s.forwards <- struct{}{}:
			default: // saying so is faster than a time-out
				_, _ = pc.WriteToUDPAddrPort(q.respond(dnsmessage.RCodeServerFailure, nil, ""), from)
				continue
			}
			wg.Go(func() {
				defer func() { <-s.forwards }()
				_, _ = pc.WriteToUDPAddrPort(q.truncate(s.ask(ctx, "udp", q, msg)), from)
			})
		}
	}
}

func (s *Server) serveStreams(ctx context.Context, l *net.TCPListener, wg *sync.WaitGroup) {
	for {
		conn, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors: wait for some to be closed
			select {
			case <-ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		select {
		case s.conns <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-s.conns }()
			s.serveStream(ctx, conn)
		})
	}
}

func (s *Server) serveStream(ctx context.Context, conn *net.TCPConn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	for {
		_ = conn.SetDeadline(time.Now().Add(idleTimeout))
		msg, err := readFramed(conn)
		if err != nil {
			return
		}
		response, q, v := answer(msg, s.cfg.Domain, s.cfg.Names)
		if v == drop {
			return
		}
		if v == forward {
			response = s.ask(ctx, "tcp", q, msg)
		}
		if writeFramed(conn, response) != nil {
			return
		}
	}
}

// ask hands the query to the upstreams, one after the other, over the network
// the client came by. The response is SERVFAIL if none answered.
func (s *Server) ask(ctx context.Context, network string, q query, msg []byte) []byte {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	for _, upstream := range s.cfg.Upstreams() {
		if slices.Contains(s.cfg.Listen, upstream) {
			continue // ourselves
		}
		if response, err := exchange(ctx, network, upstream, q, msg); err == nil {
			return response
		}
	}
	return q.respond(dnsmessage.RCodeServerFailure, nil, "")
}

// exchange asks one upstream. The socket is connected and has a port of its
// own, so that only the upstream itself can answer; a datagram that does not
// answer our question is passed over.
func exchange(ctx context.Context, network string, upstream netip.AddrPort, q query, msg []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, upstream.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		if err := writeFramed(conn, msg); err != nil {
			return nil, err
		}
		response, err := readFramed(conn)
		if err == nil && !q.answeredBy(response) {
			err = errors.New("answer to another question")
		}
		return response, err
	}
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if q.answeredBy(buf[:n]) {
			return buf[:n], nil
		}
	}
}

// answeredBy tells whether a message is a response to q (RFC 5452 section 9.1).
func (q *query) answeredBy(response []byte) bool {
	var p dnsmessage.Parser
	h, err := p.Start(response)
	if err != nil || !h.Response || h.ID != q.header.ID {
		return false
	}
	question, err := p.Question()
	if err != nil {
		return h.RCode != dnsmessage.RCodeSuccess // some servers refuse without repeating it
	}
	return question.Type == q.question.Type && question.Class == q.question.Class &&
		equalFold(question.Name, q.question.Name)
}

func equalFold(a, b dnsmessage.Name) bool {
	if a.Length != b.Length {
		return false
	}
	for i := range a.Length {
		x, y := a.Data[i], b.Data[i]
		if 'A' <= x && x <= 'Z' {
			x += 'a' - 'A'
		}
		if 'A' <= y && y <= 'Z' {
			y += 'a' - 'A'
		}
		if x != y {
			return false
		}
	}
	return true
}

// readFramed reads a message with its length before it (RFC 1035 section 4.2.2).
func readFramed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeFramed(w io.Writer, msg []byte) error {
	if len(msg) > 0xffff {
		return errors.New("message above 64 KiB")
	}
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := w.Write(append(framed, msg...))
	return err
}
