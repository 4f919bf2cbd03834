package proxy

import (
	"errors"
	"io"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/http1"
	"github.com/tulle-mesh/tulle/proxy/http2"
)

// HTTP/2 is forwarded stream by stream. A client's connection is one
// http2.Conn; each of its streams finds a place on a connection to an endpoint
// (outbound), or on the one connection to the application (inbound).

// maxKept bounds the body of a request that is kept until its answer begins, so
// that it can be sent again where nobody has seen it.
const maxKept = 16 << 10

// h2Router finds connections for requests.
type h2Router interface {
	// route calls attach of x, or unrouted, now or from another goroutine. by is
	// the connection whose goroutine calls, or nil.
	route(x *h2Exchange, by *http2.Conn)
	// answered says that the first byte of the answer came.
	answered(x *h2Exchange, firstByte time.Duration)
	// blamed says that the other side failed.
	blamed(x *h2Exchange)
	// left says that x does not use what route found any more.
	left(x *h2Exchange)
	// again reports whether a request that nobody has seen may be sent again.
	again(x *h2Exchange) bool
	edge(x *h2Exchange) *edge
	security(x *h2Exchange) mesh.Security
	server(x *h2Exchange) mesh.Peer
	// away says that the client takes part no more.
	away()
}

// h2Conn is a client's connection.
type h2Conn struct {
	proxy     *Proxy
	direction mesh.Direction
	conn      *http2.Conn
	track     *tracked
	client    mesh.Peer
	router    h2Router
	used      int64 // of the reading goroutine: when the last stream was opened, by the tracker's clock
	left      bool  // of the same: nothing happened for keepIdle, and the client knows that it has to go
}

// serve runs until the connection ends.
func (c *h2Conn) serve(first []byte) {
	c.used = c.proxy.conns.clock.Load()
	c.track.expect(keepIdle, true)
	err := c.conn.Run(first)
	c.router.away()
	var bad *http2.ConnError
	if errors.As(err, &bad) {
		c.proxy.log.Debug("HTTP/2 connection refused", "direction", c.direction.String(), "from", c.client.Addr, "error", err)
	}
}

// Accept implements http2.Owner.
func (c *h2Conn) Accept() *http2.Stream {
	c.used = c.proxy.conns.clock.Load()
	x := &h2Exchange{conn: c}
	x.rec.Start = time.Now()
	x.down.SetHandler((*h2Request)(x))
	return &x.down
}

// Settled implements http2.Owner.
func (c *h2Conn) Settled() {}

// Away implements http2.Owner.
func (c *h2Conn) Away() {}

// Interrupted implements http2.Owner: the tracker wants the connection to end.
func (c *h2Conn) Interrupted() error {
	c.track.expect(0, false) // takes the interruption back
	open, _ := c.conn.Open()
	switch {
	case c.left && open == 0:
		return errNoGoodbye
	case c.proxy.draining():
		c.conn.Leave()
	case open == 0 && c.proxy.conns.clock.Load()-c.used >= int64(keepIdle/time.Second):
		c.left = true
		c.conn.Leave()
		c.track.expect(goodbyePatience, false)
	default:
		c.track.expect(keepIdle, true)
	}
	return nil
}

// goodbyePatience is how long the other side of an idle connection may take to agree
// to its end.
const goodbyePatience = 10 * time.Second

var errNoGoodbye = &timeoutError{"it does not leave an idle connection when asked to"}

// h2Exchange is one request and its answer.
type h2Exchange struct {
	conn  *h2Conn
	down  http2.Stream // of the client
	first h2Attempt

	mu       sync.Mutex // guards what follows; held while something is sent to up
	up       *h2Attempt // the present attempt; nil while there is none
	over     bool       // nothing is forwarded any more; what the client has yet to take is sent
	recorded bool
	unsent   int   // bytes of the answer that the client has yet to take
	counters *edge // of what the exchange was with; once over
	fields   []hpack.HeaderField
	headOnly bool
	headEnd  bool // the request has no body
	kept     bool // fields and body are the whole request so far
	body     []byte
	bodyEnd  bool
	trailer  []hpack.HeaderField
	passed   int  // bytes of the body that have left on the present attempt
	credited int  // and that the client was given room for
	asked    bool // the request is complete
	begun    bool // the final answer has begun
	answered bool // the answer is complete
	grpc     bool
	status   int // grpc-status; -1: none
	attempts int
	ep       *endpoint // outbound: where the present attempt goes
	avoid    *endpoint
	sentAt   time.Time
	rec      mesh.Exchange
}

// h2Attempt is the request on its way to one endpoint or the application.
type h2Attempt struct {
	http2.Stream
	x *h2Exchange
}

// h2Request is an exchange as the client's connection sees it.
type h2Request h2Exchange

// Head implements http2.Handler.
func (r *h2Request) Head(m *http2.Message, end bool) {
	x := (*h2Exchange)(r)
	if m.Trailer {
		x.requestTrailer(m)
		return
	}
	c := x.conn
	x.mu.Lock()
	x.begin(m, end)
	x.mu.Unlock()
	if m.TooLarge {
		x.refuse(431, "head-too-large", "the header list is longer than 64 KiB", mesh.BadMessage)
		return
	}
	c.router.route(x, c.conn)
}

// begin notes the head of the request.
func (x *h2Exchange) begin(m *http2.Message, end bool) {
	c := x.conn
	x.rec.Direction, x.rec.Protocol, x.rec.Client = c.direction, mesh.HTTP2, c.client
	if c.proxy.recorder.tapped() {
		x.rec.Method, x.rec.Path, x.rec.Host = m.Method, m.Path, m.Authority
		if x.rec.Host == "" {
			x.rec.Host = m.Host()
		}
	}
	x.fields = slices.Clone(m.Fields)
	x.headOnly, x.headEnd, x.asked, x.grpc, x.status = m.Method == "HEAD", end, end, m.GRPC, -1
	x.kept = true
	for i := range m.Fields {
		x.rec.BytesSent += uint64(len(m.Fields[i].Name) + len(m.Fields[i].Value))
	}
}

func (x *h2Exchange) requestTrailer(m *http2.Message) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.asked = true
	switch {
	case x.over:
	case m.TooLarge: // the rest of it is not here
		if x.up != nil {
			x.up.SendReset(http2.Cancel)
			x.conn.conn.Touch(x.up.Conn())
		}
		x.tooLargeLocked(431, "the request's trailer is longer than 64 KiB")
		x.conn.conn.Touch(x.conn.conn)
	case x.up == nil:
		x.trailer, x.bodyEnd = slices.Clone(m.Fields), true
	default:
		x.forget()
		x.up.SendHead(m.Fields, true)
		x.conn.conn.Touch(x.up.Conn())
	}
	x.finishLocked()
}

// forget gives up what a retry would need.
func (x *h2Exchange) forget() { x.kept, x.body, x.fields = false, nil, nil }

// Data implements http2.Handler.
func (r *h2Request) Data(p []byte, end bool) {
	x := (*h2Exchange)(r)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.asked = x.asked || end
	x.rec.BytesSent += uint64(len(p))
	switch {
	case x.over:
		if x.down.Credit(len(p)) {
			x.conn.conn.Touch(x.conn.conn)
		}
	case x.up == nil: // no more than the stream's first window
		x.body = append(x.body, p...)
		x.bodyEnd = end
	default:
		if x.kept && len(x.body)+len(p) <= maxKept {
			x.body = append(x.body, p...)
			x.bodyEnd = end
		} else {
			x.forget()
		}
		n := x.up.SendData(x.conn.conn, p, end)
		x.conn.conn.Touch(x.up.Conn())
		if x.pass(n) {
			x.conn.conn.Touch(x.conn.conn)
		}
	}
	x.finishLocked()
}

// pass notes that n bytes of the request have left, and gives the client room
// for as many. A second attempt sends some again, which give no room. It reports
// whether the client's connection has to be flushed, without x.mu: flushing
// calls other exchanges.
func (x *h2Exchange) pass(n int) bool {
	x.passed += n
	more := x.passed - x.credited
	if more <= 0 {
		return false
	}
	x.credited = x.passed
	return x.down.Credit(more)
}

// flushBy sends what was appended to c, at the end of by's batch if there is one.
func flushBy(by, c *http2.Conn) {
	if by != nil {
		by.Touch(c)
	} else {
		c.Flush()
	}
}

// Sent implements http2.Handler: more of the answer has left.
func (r *h2Request) Sent(n int) {
	x := (*h2Exchange)(r)
	x.mu.Lock()
	up := x.up
	if x.unsent -= n; x.over && !x.recorded && x.unsent == 0 {
		x.recordLocked()
	}
	x.mu.Unlock()
	if up != nil && up.Credit(n) {
		up.Conn().Flush()
	}
}

// Reset implements http2.Handler: the client does not want the answer any more,
// or its connection has ended.
func (r *h2Request) Reset(code http2.Code, err error) {
	x := (*h2Exchange)(r)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		x.lostLocked()
		return
	}
	var bad *http2.ConnError
	switch up := x.up; {
	case up == nil:
	case err != nil:
		up.SendReset(http2.Cancel)
		x.conn.conn.Touch(up.Conn())
	default:
		up.SendReset(code)
		x.conn.conn.Touch(up.Conn())
	}
	if x.rec.Outcome = mesh.Reset; err != nil && !errors.As(err, &bad) && !http2.Closed(err) && !isReset(err) {
		x.rec.Outcome = mesh.BadMessage
	}
	if x.answered && x.unsent == 0 {
		x.rec.Outcome = x.outcome()
	}
	x.endLocked()
}

// Unread implements http2.Handler: the client does not read the answer.
func (r *h2Request) Unread() {
	x := (*h2Exchange)(r)
	x.mu.Lock()
	up := x.up
	if x.over {
		x.lostLocked()
		up = nil
	} else {
		if up != nil {
			up.SendReset(http2.Cancel)
		}
		x.rec.Outcome = mesh.Reset
		x.endLocked()
	}
	x.mu.Unlock()
	if up != nil {
		up.Conn().Flush()
	}
}

// attach sends the request on to, where a place was reserved for it.
func (x *h2Exchange) attach(to *http2.Conn, by *http2.Conn) {
	x.mu.Lock()
	if x.over {
		x.mu.Unlock()
		to.Release()
		return
	}
	a := &x.first
	if x.attempts > 0 {
		a = &h2Attempt{}
	}
	a.x = x
	a.SetHandler(a)
	if err := to.Start(&a.Stream, x.fields, x.headOnly, x.headEnd); err != nil {
		x.mu.Unlock()
		x.unrouted(err)
		return
	}
	x.up, x.passed, x.sentAt = a, 0, time.Now()
	n := 0
	if len(x.body) > 0 || x.bodyEnd && x.trailer == nil {
		n = a.SendData(x.conn.conn, x.body, x.bodyEnd && x.trailer == nil)
	}
	if x.trailer != nil {
		a.SendHead(x.trailer, true)
	}
	if len(x.body) > maxKept || x.trailer != nil {
		x.forget()
	}
	room := x.pass(n)
	extended := x.ep != nil && x.ep.Value.extended.Load()
	x.mu.Unlock()
	if extended && x.conn.conn.Announce(0, true) {
		room = true
	}
	flushBy(by, to)
	if room {
		flushBy(by, x.down.Conn())
	}
}

// Head implements http2.Handler: an answer, an interim one, or its trailer.
func (a *h2Attempt) Head(m *http2.Message, end bool) {
	x := a.x
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.up != a || x.over {
		return
	}
	if m.TooLarge {
		a.SendReset(http2.Cancel)
		a.Conn().Touch(a.Conn())
		x.tooLargeLocked(502, "the answer's header list is longer than 64 KiB")
		a.Conn().Touch(x.down.Conn())
		return
	}
	if x.rec.FirstByte == 0 {
		x.rec.FirstByte = time.Since(x.rec.Start)
		x.conn.router.answered(x, time.Since(x.sentAt))
		x.forget()
	}
	if !m.Trailer && !m.Interim() {
		x.begun, x.rec.Status = true, m.Status
	}
	if m.GRPCStatus >= 0 {
		x.status = m.GRPCStatus
	}
	for i := range m.Fields {
		x.rec.BytesReceived += uint64(len(m.Fields[i].Name) + len(m.Fields[i].Value))
	}
	x.down.SendHead(m.Fields, end)
	a.Conn().Touch(x.down.Conn())
	x.answered = x.answered || end
	x.finishLocked()
}

// Data implements http2.Handler.
func (a *h2Attempt) Data(p []byte, end bool) {
	x := a.x
	x.mu.Lock()
	defer x.mu.Unlock()
	n := len(p)
	if x.up == a && !x.over {
		n = x.down.SendData(a.Conn(), p, end)
		x.unsent += len(p) - n
		x.rec.BytesReceived += uint64(len(p))
		a.Conn().Touch(x.down.Conn())
		x.answered = x.answered || end
	}
	if n > 0 && a.Credit(n) {
		a.Conn().Touch(a.Conn())
	}
	x.finishLocked()
}

// Sent implements http2.Handler: more of the request has left.
func (a *h2Attempt) Sent(n int) {
	x := a.x
	x.mu.Lock()
	room := x.up == a && x.pass(n)
	x.mu.Unlock()
	if room {
		x.down.Conn().Flush()
	}
}

// Reset implements http2.Handler: the application ended the stream, or its
// connection ended.
func (a *h2Attempt) Reset(code http2.Code, err error) {
	x := a.x
	by := a.Conn()
	x.mu.Lock()
	if x.up != a || x.over {
		x.mu.Unlock()
		return
	}
	var away *http2.GoAwayError
	unseen := code == http2.RefusedStream && (err == nil || errors.As(err, &away))
	if unseen && x.kept && x.rec.FirstByte == 0 && x.conn.router.again(x) {
		x.conn.router.blamed(x) // so that the next ones don't try it first
		x.up = nil
		x.leaveLocked()
		x.mu.Unlock()
		x.conn.router.route(x, nil)
		return
	}
	defer x.mu.Unlock()
	x.rec.Outcome = mesh.Reset
	switch {
	case x.answered && code == http2.NoError && err == nil:
		x.down.SendReset(code)
		by.Touch(x.down.Conn())
		x.completeLocked()
		return
	case unseen || err == nil:
		x.down.SendReset(code)
	case x.rec.FirstByte == 0:
		x.conn.router.blamed(x)
		x.answerLocked(502, "no-answer", lostText(err))
	default:
		x.breakLocked(grpcUnavailable, "the connection to the application ended: "+err.Error())
	}
	by.Touch(x.down.Conn())
	x.endLocked()
}

// Unread implements http2.Handler: the application does not read the request.
func (a *h2Attempt) Unread() {
	x := a.x
	x.mu.Lock()
	mine := x.up == a && !x.over
	switch {
	case !mine:
	case x.answered:
		x.down.SendReset(http2.NoError) // RFC 9113 section 8.1: the rest is not needed
		x.completeLocked()
	default:
		x.down.SendReset(http2.EnhanceYourCalm)
		x.rec.Outcome = mesh.Reset
		x.endLocked()
	}
	x.mu.Unlock()
	if mine {
		x.down.Conn().Flush()
	}
}

func lostText(err error) string {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return "the connection to the application ended before it answered"
	}
	return "the connection to the application ended before it answered: " + err.Error()
}

// tooLargeLocked ends x for a header list that is not forwarded.
func (x *h2Exchange) tooLargeLocked(status int, text string) {
	if x.begun {
		x.breakLocked(grpcResourceExhausted, text)
	} else {
		x.answerLocked(status, "head-too-large", text)
	}
	x.rec.Outcome = mesh.BadMessage
	x.endLocked()
}

// breakLocked ends an answer that has begun and can't be completed. A gRPC
// client is told why, with status: without a connection, UNAVAILABLE as it would
// see without the mesh.
func (x *h2Exchange) breakLocked(status int, text string) {
	if x.grpc && x.begun && x.down.Sending() {
		x.down.SendHead([]hpack.HeaderField{
			{Name: "grpc-status", Value: strconv.Itoa(status)},
			{Name: "grpc-message", Value: url.PathEscape(text)},
		}, true)
		x.status = status
		if x.asked {
			return
		}
		x.down.SendReset(http2.NoError)
		return
	}
	x.down.SendReset(http2.InternalError)
}

// gRPC status codes that the proxy uses itself.
const (
	grpcResourceExhausted = 8
	grpcInternal          = 13
	grpcUnavailable       = 14
)

// unrouted goes elsewhere, or answers for an application that has seen nothing.
func (x *h2Exchange) unrouted(err error) {
	x.mu.Lock()
	if x.over {
		x.mu.Unlock()
		return
	}
	if x.ep == nil && errors.Is(err, http2.ErrClosed) { // the application, just now
		x.mu.Unlock()
		x.refuseUnseen()
		return
	}
	x.attempts++
	elsewhere := x.ep != nil && (x.avoid != x.ep || errors.Is(err, http2.ErrClosed)) && x.attempts < maxAttempts
	if x.ep != nil && !errors.Is(err, http2.ErrClosed) {
		x.conn.router.blamed(x)
	}
	if elsewhere {
		x.leaveLocked()
	}
	x.mu.Unlock()
	if elsewhere {
		x.conn.router.route(x, nil)
		return
	}
	outcome := outcomeOf(err)
	if errors.Is(err, errNoEndpoint) {
		outcome = mesh.NoEndpoint
	}
	status, code, text := unsentAnswer(err)
	x.refuse(status, code, text, outcome)
}

// refuse answers for an application that has seen nothing, and ends x.
func (x *h2Exchange) refuse(status int, code, text string, outcome mesh.Outcome) {
	x.mu.Lock()
	if !x.over {
		x.answerLocked(status, code, text)
		x.rec.Outcome = outcome
		x.endLocked()
	}
	x.mu.Unlock()
	x.down.Conn().Flush()
}

// refuseUnseen tells the client that no application has seen the request, so
// that it may send it elsewhere.
func (x *h2Exchange) refuseUnseen() {
	x.mu.Lock()
	if !x.over {
		x.down.SendReset(http2.RefusedStream)
		x.rec.Outcome = mesh.ConnectFail
		x.endLocked()
	}
	x.mu.Unlock()
	x.down.Conn().Flush()
}

// answerLocked answers in place of the application.
func (x *h2Exchange) answerLocked(status int, code, text string) {
	if x.grpc {
		x.status = grpcStatus(status)
		x.rec.Status = 200
		x.down.SendHead([]hpack.HeaderField{
			{Name: ":status", Value: "200"},
			{Name: "content-type", Value: "application/grpc"},
			{Name: "grpc-status", Value: strconv.Itoa(x.status)},
			{Name: "grpc-message", Value: url.PathEscape(text)},
			{Name: http1.ErrorField, Value: code},
		}, true)
	} else {
		x.rec.Status = status
		x.down.SendHead([]hpack.HeaderField{
			{Name: ":status", Value: strconv.Itoa(status)},
			{Name: "content-type", Value: "text/plain; charset=utf-8"},
			{Name: "content-length", Value: strconv.Itoa(len(text) + 1)},
			{Name: http1.ErrorField, Value: code},
		}, x.headOnly)
		if !x.headOnly {
			x.down.SendData(nil, []byte(text+"\n"), true)
		}
	}
	if !x.asked {
		x.down.SendReset(http2.NoError) // RFC 9113 section 8.1: the rest is not needed
	}
}

// grpcStatus says in gRPC's terms what an HTTP status says.
func grpcStatus(status int) int {
	switch status {
	case 431:
		return grpcResourceExhausted
	case 502, 503, 504:
		return grpcUnavailable
	}
	return grpcInternal
}

// finishLocked ends x if both messages are complete.
func (x *h2Exchange) finishLocked() {
	if x.asked && x.answered && !x.over {
		x.completeLocked()
	}
}

// completeLocked ends x with a complete answer. It is a success once the client has
// taken it: until then the stream may still be reset.
func (x *h2Exchange) completeLocked() {
	x.rec.Outcome = x.outcome()
	x.closeLocked()
	if x.unsent == 0 {
		x.recordLocked()
	}
}

// outcome judges a complete answer.
func (x *h2Exchange) outcome() mesh.Outcome {
	switch {
	case x.grpc && x.status >= 0:
		return mesh.GRPCOutcome(x.status)
	case x.rec.Status >= 500:
		return mesh.AppFailure
	}
	return mesh.Success
}

// endLocked ends x and records it.
func (x *h2Exchange) endLocked() {
	x.closeLocked()
	x.recordLocked()
}

// closeLocked notes whom x was with, and leaves. Nothing is forwarded from then on,
// but what is pending still leaves.
func (x *h2Exchange) closeLocked() {
	x.over = true
	r := x.conn.router
	x.rec.Server, x.rec.Security, x.counters = r.server(x), r.security(x), r.edge(x)
	x.leaveLocked()
	x.body, x.fields, x.trailer = nil, nil, nil
}

// recordLocked is called once.
func (x *h2Exchange) recordLocked() {
	x.recorded = true
	x.rec.Duration = time.Since(x.rec.Start)
	x.conn.proxy.recorder.record(x.counters, &x.rec)
}

// lostLocked records an answer whose end the client does not take, if x is one.
func (x *h2Exchange) lostLocked() {
	if !x.recorded {
		x.rec.Outcome = mesh.Reset
		x.recordLocked()
	}
}

func (x *h2Exchange) leaveLocked() { x.conn.router.left(x) }
