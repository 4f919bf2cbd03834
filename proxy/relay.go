package proxy

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/proxy/mux"
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
	// under is the TCP connection below; nil if others use it, too.
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
		buf := tcp.NewBuffer(stream.HeaderLen + e.in.len())
		n := copy(buf.B[stream.HeaderLen:], e.in.bytes())
		e.in.take(n)
		e.in.release()
		return buf, n, nil
	}
	if e.conn == byteConn(e.tcp) {
		return e.tcp.Next(stream.HeaderLen, size)
	}
	buf := tcp.NewBuffer(size)
	n, err := e.conn.Read(buf.B[stream.HeaderLen:min(size, len(buf.B))])
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
	size = min(size, stream.HeaderLen+e.Left())
	buf := tcp.NewBuffer(size)
	n, err := e.Read(buf.B[stream.HeaderLen:min(size, len(buf.B))])
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

// muxEnd is a stream among others to another proxy.
type muxEnd struct {
	*mux.Stream
	in *inbox // read before the relay began
}

func (e *muxEnd) next(int) (*tcp.Buffer, int, error) {
	buf, r, w := e.in.buf, e.in.r, e.in.w
	if e.in.len() > 0 {
		*e.in = inbox{}
	} else {
		var err error
		if buf, r, w, err = e.Next(); err != nil {
			return nil, 0, err
		}
	}
	if r == stream.HeaderLen {
		return buf, w - r, nil
	}
	moved := tcp.NewBuffer(stream.HeaderLen + w - r)
	n := copy(moved.B[stream.HeaderLen:], buf.B[r:w])
	buf.Free()
	return moved, n, nil
}

func (e *muxEnd) write(b []byte) error {
	_, err := e.Write(b[stream.HeaderLen:])
	return err
}

func (e *muxEnd) closeWrite() error { return e.CloseWrite() }
func (e *muxEnd) reset()            { e.Reset() }
func (e *muxEnd) under() *tcp.Conn  { return nil } // it is not its own

// stuckPatience is how long a relay whose one side was reset may take to
// deliver what came before the reset.
const stuckPatience = 500 * time.Millisecond

// What is read at once from a side that sends much, and from one that sends
// faster than that is taken: a frame.
const (
	large = 64 << 10
	bulk  = stream.HeaderLen + stream.MaxPayload
)

// nextSize is how much to read at once after n bytes have come where there was
// room for size: as much as keeps coming.
func nextSize(n, size int) int {
	n += stream.HeaderLen
	switch {
	case n >= large:
		return bulk
	case n == size || size == bulk:
		return large
	}
	return size
}

// flow is one direction of a relay.
type flow struct {
	dst, src end
	moved    atomic.Uint64
	waiting  atomic.Bool // for src, without a byte on the way
	ended    atomic.Bool
}

// relay moves bytes both ways between near and far until both sides have
// ended. Half-closes and resets arrive on the other side as what they are. It
// leaves the connections open.
type relay struct {
	proxy     *Proxy
	track     *tracked
	out, back *flow // from near to far, and back
	parking   *parking

	mu   sync.Mutex
	over bool
	near watchID
	far  watchID
}

func (p *Proxy) newRelay(t *tracked, near, far end) *relay {
	return &relay{
		proxy: p, track: t,
		out: &flow{dst: far, src: near}, back: &flow{dst: near, src: far},
	}
}

// relay runs a relay to its end and returns how many bytes went from near to
// far and back.
func (p *Proxy) relay(t *tracked, near, far end) (sent, received uint64, err error) {
	r := p.newRelay(t, near, far)
	_, err = r.run()
	return r.out.moved.Load(), r.back.moved.Load(), err
}

// run moves bytes until the relay ends or is parked: see parking.go.
func (r *relay) run() (parked bool, err error) {
	ended := make(chan error, 1)
	if r.back.ended.Load() {
		ended <- nil
	} else {
		go func() { ended <- r.turn(r.back) }()
	}
	return r.join(ended)
}

// join runs out in this goroutine while back runs in another one.
func (r *relay) join(ended <-chan error) (parked bool, err error) {
	r.watch()
	if !r.out.ended.Load() {
		err = r.turn(r.out)
	}
	back := <-ended
	if r.park(err, back) {
		return true, nil
	}
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	r.proxy.hangups.forget(r.near)
	r.proxy.hangups.forget(r.far)
	return false, errors.Join(err, back)
}

// watch makes a reset of either side end the relay, also while both directions
// are stuck in writes.
func (r *relay) watch() {
	if r.near != 0 || r.far != 0 {
		return
	}
	near, far := r.out.src, r.out.dst
	if s, ok := far.(*muxEnd); ok {
		r.track.stream.Store(s.Stream)
	} else {
		r.track.far.Store(far.under())
	}
	onReset := func(kind uint32) {
		if kind != hangupReset {
			return
		}
		time.AfterFunc(stuckPatience, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if !r.over { // else far may carry another stream by now
				near.reset()
				far.reset()
			}
		})
	}
	r.near = r.proxy.watchEnd(near, onReset)
	r.far = r.proxy.watchEnd(far, onReset)
}

// watchEnd returns 0 where the watch ends with e.
func (p *Proxy) watchEnd(e end, call func(kind uint32)) watchID {
	if s, ok := e.(*muxEnd); ok {
		s.Watch(func(reset bool) {
			if reset {
				call(hangupReset)
			}
		})
		return 0
	}
	return p.hangups.watch(e.under(), call)
}

// run moves bytes until src ends or dst does not take them.
func (f *flow) run() error {
	if src, ok := f.src.(*connEnd); ok && src.in != nil && src.in.len() > 0 {
		buf, n, err := src.next(large)
		return f.runFrom(buf, n, err)
	}
	if err := f.splice(); err != nil {
		return f.finish(err)
	}
	for size := tcp.Small; ; {
		f.waiting.Store(true)
		buf, n, err := f.src.next(size)
		f.waiting.Store(false)
		if err == nil {
			err = f.deliver(buf, n)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errParked // nobody else sets a deadline on what is relayed
		}
		if err != nil {
			return f.finish(err)
		}
		size = nextSize(n, size)
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
	if !ok || !ok2 || !src.plain() || !dst.plain() || !src.tcp.CanSplice() || !dst.tcp.CanSplice() {
		return nil
	}
	for {
		n, err := dst.tcp.Splice(src.tcp, splicePiece)
		f.moved.Add(uint64(n))
		switch {
		case err != nil:
			return err
		case n < splicePiece:
			return io.EOF
		}
	}
}
