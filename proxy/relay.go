package proxy

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/proxy/stream"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// end is one side of a relay of opaque bytes. One goroutine reads and one
// writes at a time; reset may be called by anybody.
type end interface {
	// next waits for bytes, without a buffer while there are none, and returns
	// them behind stream.HeaderLen free bytes. The caller frees the buffer.
	next(size int) (*tcp.Buffer, int, error)
	// write sends b[stream.HeaderLen:].
	write(b []byte) error
	closeWrite() error
	reset()
	// under is the TCP connection below.
	under() *tcp.Conn
}

// connEnd is a plain connection, or TLS whose inside is not framed.
type connEnd struct {
	conn byteConn
	tcp  *tcp.Conn
	in   *inbox // read before the relay began; nil if nothing was
}

func (e *connEnd) next(size int) (*tcp.Buffer, int, error) {
	if e.in != nil && e.in.len() > 0 {
		buf := tcp.NewBuffer(bulk)
		n := copy(buf.B[stream.HeaderLen:bulk], e.in.bytes())
		e.in.take(n)
		e.in.release()
		return buf, n, nil
	}
	if e.conn == byteConn(e.tcp) {
		return e.tcp.Next(stream.HeaderLen, size)
	}
	buf := tcp.NewBuffer(size)
	n, err := e.conn.Read(buf.B[stream.HeaderLen:size])
	if n == 0 {
		buf.Free()
		return nil, 0, err
	}
	return buf, n, nil
}

func (e *connEnd) write(b []byte) error {
	_, err := e.conn.Write(b[stream.HeaderLen:])
	return err
}

func (e *connEnd) closeWrite() error { return e.conn.CloseWrite() }
func (e *connEnd) reset()            { e.tcp.Reset() }
func (e *connEnd) under() *tcp.Conn  { return e.tcp }

// plain reports whether the kernel may move the bytes by itself.
func (e *connEnd) plain() bool { return e.conn == byteConn(e.tcp) }

// streamEnd is a stream to another proxy.
type streamEnd struct {
	*stream.Conn
	tcp *tcp.Conn
}

func (e *streamEnd) next(size int) (*tcp.Buffer, int, error) {
	if err := e.Wait(); err != nil {
		return nil, 0, err
	}
	buf := tcp.NewBuffer(stream.HeaderLen + e.Left())
	n, err := e.Read(buf.B[stream.HeaderLen:])
	if n == 0 {
		buf.Free()
		return nil, 0, err
	}
	return buf, n, nil
}

func (e *streamEnd) write(b []byte) error { return e.WriteFramed(b) }
func (e *streamEnd) closeWrite() error    { return e.CloseWrite() }
func (e *streamEnd) reset()               { e.Abort() }
func (e *streamEnd) under() *tcp.Conn     { return e.tcp }

// stuckPatience is how long a relay whose one side was reset may take to
// deliver what came before the reset.
const stuckPatience = 500 * time.Millisecond

// bulk is what is read at once from a side that has much to send: a frame.
const bulk = stream.HeaderLen + stream.MaxPayload

// flow is one direction of a relay.
type flow struct {
	dst, src end
	moved    atomic.Uint64
}

// relay moves bytes both ways until both sides have ended, and returns how
// many went from near to far and back. Half-closes and resets arrive on the
// other side as what they are. It leaves the connections open.
func (p *Proxy) relay(t *tracked, near, far end) (sent, received uint64, err error) {
	out, back := &flow{dst: far, src: near}, &flow{dst: near, src: far}
	ended := make(chan error, 1)
	go func() { ended <- back.run() }()
	return p.join(t, out, back, ended)
}

// join runs out in this goroutine while back runs in another one.
func (p *Proxy) join(t *tracked, out, back *flow, ended <-chan error) (sent, received uint64, err error) {
	near, far := out.src, out.dst
	t.far.Store(far.under())
	// A side may be reset while both directions are stuck in writes.
	var mu sync.Mutex
	over := false
	onReset := func(kind uint32) {
		if kind != hangupReset {
			return
		}
		time.AfterFunc(stuckPatience, func() {
			mu.Lock()
			defer mu.Unlock()
			if !over { // else far may carry another stream by now
				near.reset()
				far.reset()
			}
		})
	}
	w1 := p.hangups.watch(near.under(), onReset)
	w2 := p.hangups.watch(far.under(), onReset)
	err = out.run()
	err = errors.Join(err, <-ended)
	mu.Lock()
	over = true
	mu.Unlock()
	p.hangups.forget(w1)
	p.hangups.forget(w2)
	return out.moved.Load(), back.moved.Load(), err
}

// run moves bytes until src ends or dst does not take them.
func (f *flow) run() error {
	if src, ok := f.src.(*connEnd); ok && src.in != nil && src.in.len() > 0 {
		buf, n, err := src.next(bulk)
		return f.runFrom(buf, n, err)
	}
	if err := f.splice(); err != nil {
		return f.finish(err)
	}
	for size := tcp.Small; ; {
		buf, n, err := f.src.next(size)
		if err == nil {
			err = f.deliver(buf, n)
		}
		if err != nil {
			return f.finish(err)
		}
		if n == size-stream.HeaderLen {
			size = bulk // it fills small ones: bulk
		}
	}
}

// runFrom is run for which src.next has been called once.
func (f *flow) runFrom(buf *tcp.Buffer, n int, err error) error {
	if err == nil {
		err = f.deliver(buf, n)
	}
	if err != nil {
		return f.finish(err)
	}
	return f.run()
}

func (f *flow) deliver(buf *tcp.Buffer, n int) error {
	err := f.dst.write(buf.B[:stream.HeaderLen+n])
	buf.Free()
	f.moved.Add(uint64(n))
	return err
}

// finish passes the end of src on to dst. If anything but a half-close ended
// the flow, neither side goes on.
func (f *flow) finish(err error) error {
	if err == io.EOF {
		return f.dst.closeWrite()
	}
	f.dst.reset()
	f.src.reset()
	return err
}

// splicePiece bounds what one splice moves, so that counters stay fresh.
const splicePiece = 4 << 20

// splice lets the kernel move the bytes (splice(2), in net.TCPConn.ReadFrom) if
// both sides are plain. nil means that they are not; io.EOF, that src ended.
func (f *flow) splice() error {
	src, ok := f.src.(*connEnd)
	dst, ok2 := f.dst.(*connEnd)
	if !ok || !ok2 || !src.plain() || !dst.plain() {
		return nil
	}
	for {
		n, err := dst.tcp.ReadFrom(&io.LimitedReader{R: src.tcp.TCPConn, N: splicePiece})
		f.moved.Add(uint64(n))
		switch {
		case err != nil:
			return err
		case n < splicePiece:
			return io.EOF
		}
	}
}
