package http2

import (
	"encoding/binary"
	"fmt"
)

// frame handles one whole frame. A *streamError ends its stream, any other
// error the connection.
func (c *Conn) frame(h frameHeader, p []byte) error {
	switch {
	case !c.settled && (h.kind != frameSettings || h.flags&flagAck != 0):
		return &ConnError{ProtocolError, "the first frame is not SETTINGS"}
	case c.blockID != 0 && (h.kind != frameContinuation || h.id != c.blockID):
		return &ConnError{ProtocolError, "a header list is interrupted"}
	}
	switch h.kind {
	case frameData:
		return c.data(h, p)
	case frameHeaders:
		return c.headers(h, p)
	case frameContinuation:
		return c.continuation(h, p)
	case frameReset:
		return c.reset(h, p)
	case frameWindowUpdate:
		return c.windowUpdate(h, p)
	}
	if err := c.useless(); err != nil { // all that follows moves nothing
		return err
	}
	switch h.kind {
	case frameSettings:
		return c.settings(h, p)
	case framePing:
		return c.ping(h, p)
	case frameGoAway:
		return c.goAway(h, p)
	case framePriority:
		return c.priority(h, p)
	case framePushPromise:
		return &ConnError{ProtocolError, "PUSH_PROMISE"}
	}
	return nil // of an unknown type (section 4.1)
}

// stream returns an open stream, or nil for one that is closed. One that was
// never opened is an error.
func (c *Conn) stream(h frameHeader) (*Stream, error) {
	if h.id == 0 {
		return nil, &ConnError{ProtocolError, "frame of a stream without a stream"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[h.id]; s != nil {
		return s, nil
	}
	if c.idleLocked(h.id) {
		return nil, &ConnError{ProtocolError, "frame for a stream that was never opened"}
	}
	return nil, nil
}

func (c *Conn) idleLocked(id uint32) bool {
	if id%2 == 1 == c.config.Server { // the peer's to open
		return id > c.lastPeer || !c.config.Server
	}
	return c.config.Server || id >= c.nextID
}

// data handles DATA. Padding is not forwarded, but counts for the windows.
func (c *Conn) data(h frameHeader, p []byte) error {
	s, err := c.stream(h)
	if err != nil {
		return err
	}
	payload, err := unpad(h, p)
	if err != nil {
		return err
	}
	if len(payload) > 0 {
		c.noise.pay()
	} else if h.flags&flagEndStream == 0 {
		if err := c.useless(); err != nil {
			return err
		}
	}
	c.mu.Lock()
	if c.recvWindow -= int64(h.length); c.recvWindow < 0 {
		c.mu.Unlock()
		return &ConnError{FlowControlError, "more DATA than the connection's window"}
	}
	c.unacked += int64(h.length)
	if c.creditLocked() {
		c.Touch(c)
	}
	if s == nil || s.recvEnd {
		found, byUs := c.ring.find(h.id)
		c.mu.Unlock()
		switch {
		case s == nil && byUs, s == nil && !c.config.Server:
			return c.late()
		case s == nil && found:
			return &ConnError{StreamClosed, "DATA behind the end of its stream"}
		}
		return &streamError{h.id, StreamClosed, "DATA behind the end of its stream"}
	}
	if s.recvWindow -= int64(h.length); s.recvWindow < 0 && h.length > 0 { // an empty one needs no window
		c.mu.Unlock()
		return &streamError{h.id, FlowControlError, "more DATA than the stream's window"}
	}
	s.held += int64(len(payload))
	c.held += int64(len(payload))
	if pad := h.length - len(payload); pad > 0 {
		s.creditLocked(int64(pad))
		c.Touch(c)
	}
	s.recvEnd = h.flags&flagEndStream != 0
	done := s.recvEnd && s.sentEnd
	if done {
		c.removeLocked(s)
	}
	c.mu.Unlock()
	return c.deliver(s, payload, h.flags&flagEndStream != 0)
}

// late ignores a frame that was under way when its stream was reset.
func (c *Conn) late() error { return c.useless() }

// useless counts a frame that moves nothing. What was sent to the peer pays for
// some: it has to open windows for that, and may measure the way with PING.
func (c *Conn) useless() error { return c.noisy(1) }

// noisy counts what is as much work as n such frames.
func (c *Conn) noisy(n int) error {
	if !c.noise.add(n, maxNoise) {
		return nil
	}
	c.mu.Lock()
	paid := c.sentFrames
	c.sentFrames = 0
	c.mu.Unlock()
	if c.noise.level = max(0, c.noise.level-noisePaid*paid); c.noise.level <= maxNoise {
		return nil
	}
	return &ConnError{EnhanceYourCalm, "too many frames that do nothing"}
}

// deliver hands payload to the handler if the message is what it said it would be.
func (c *Conn) deliver(s *Stream, payload []byte, end bool) error {
	if !s.head {
		s.giveBack(len(payload))
		return c.malformed(s, "DATA before HEADERS")
	}
	if s.length >= 0 {
		if s.length -= int64(len(payload)); s.length < 0 || end && s.length > 0 {
			s.giveBack(len(payload))
			return c.malformed(s, "DATA does not add up to content-length")
		}
	}
	s.handler.Data(payload, end)
	c.mu.Lock()
	if c.resizeLocked() { // now that it is known what could be sent on
		c.Touch(c)
	}
	c.mu.Unlock()
	return nil
}

// malformed ends a stream that may just have been closed by the peer.
func (c *Conn) malformed(s *Stream, reason string) error {
	c.mu.Lock()
	gone := c.streams[s.id] != s
	c.mu.Unlock()
	bad := &streamError{s.id, ProtocolError, reason}
	if gone {
		s.handler.Reset(ProtocolError, bad)
	}
	return bad
}

// headers handles HEADERS, whose priority is ignored (section 5.3.2).
func (c *Conn) headers(h frameHeader, p []byte) error {
	if h.id == 0 {
		return &ConnError{ProtocolError, "HEADERS without a stream"}
	}
	p, err := unpad(h, p)
	if err != nil {
		return err
	}
	var self bool
	if h.flags&flagPriority != 0 {
		if len(p) < 5 {
			return &ConnError{FrameSizeError, "HEADERS too short for its priority"}
		}
		self = binary.BigEndian.Uint32(p)&maxStreamID == h.id
		p = p[5:]
	}
	if len(p) == 0 {
		if err := c.useless(); err != nil {
			return err
		}
	}
	end := h.flags&flagEndStream != 0
	if h.flags&flagEndHeaders == 0 {
		c.blockID, c.blockEnd, c.blocks = h.id, end, 0
		c.block = append(c.block[:0], p...)
		return nil
	}
	err = c.list(h.id, p, end)
	if err == nil && self {
		return &streamError{h.id, ProtocolError, "a stream that depends on itself"}
	}
	return err
}

func (c *Conn) continuation(h frameHeader, p []byte) error {
	if c.blockID == 0 {
		return &ConnError{ProtocolError, "CONTINUATION without HEADERS"}
	}
	if c.blocks++; c.blocks > maxBlocks || len(c.block)+len(p) > maxBlock {
		return &ConnError{EnhanceYourCalm, "a header list in too many pieces"}
	}
	c.block = append(c.block, p...)
	if h.flags&flagEndHeaders == 0 {
		return nil
	}
	id, block := c.blockID, c.block
	c.blockID, c.block = 0, nil
	return c.list(id, block, c.blockEnd)
}

// list handles a whole header list. It is decoded in any case: the next one
// refers to it.
func (c *Conn) list(id uint32, block []byte, end bool) error {
	c.msg.reset()
	if _, err := c.dec.Write(block); err != nil {
		return &ConnError{CompressionError, err.Error()}
	}
	if err := c.dec.Close(); err != nil {
		return &ConnError{CompressionError, err.Error()}
	}
	s, err := c.addressee(id)
	if s == nil || err != nil {
		return err
	}
	m := &c.msg
	k := requestHead
	switch {
	case s.head:
		k = trailer
	case !c.config.Server:
		k = responseHead
	}
	m.Trailer = k == trailer
	if k == trailer && !end {
		return &streamError{id, ProtocolError, "a second header list that does not end the message"}
	}
	if !m.TooLarge || m.bad != nil {
		if err := m.check(k, c.connect); err != nil {
			return &streamError{id, ProtocolError, err.Error()}
		}
	}
	if err := s.begin(m, k, end); err != nil {
		return err
	}
	if k == responseHead && m.Interim() { // there may be any number of them, and no window holds them up
		if err := c.useless(); err != nil {
			return err
		}
	} else {
		c.noise.pay()
	}
	if end {
		c.mu.Lock()
		s.recvEnd = true
		if s.sentEnd {
			c.removeLocked(s)
		}
		c.mu.Unlock()
	}
	s.handler.Head(m, end)
	return nil
}

// begin notes what the head says about the body.
func (s *Stream) begin(m *Message, k kind, end bool) error {
	bodyless := false
	switch k {
	case trailer:
		if s.length > 0 {
			return &streamError{s.id, ProtocolError, "DATA does not add up to content-length"}
		}
		return nil
	case responseHead:
		if m.Interim() {
			if end {
				return &streamError{s.id, ProtocolError, "an interim answer that ends the stream"}
			}
			return nil
		}
		bodyless = s.headOnly || m.Status == 304 || m.Status == 204
	}
	s.head, s.length = true, m.ContentLength
	if bodyless {
		s.length = 0 // whatever is declared
	}
	if end && s.length > 0 {
		return &streamError{s.id, ProtocolError, "content-length without DATA"}
	}
	return nil
}

// addressee returns the stream that a header list is for, a new one if the peer
// opens it; nil if it is ignored.
func (c *Conn) addressee(id uint32) (*Stream, error) {
	c.mu.Lock()
	c.connect = c.config.Connect
	s := c.streams[id]
	switch {
	case s != nil && s.recvEnd:
		c.mu.Unlock()
		return nil, &streamError{id, StreamClosed, "HEADERS behind the end of the stream"}
	case s != nil:
		c.mu.Unlock()
		return s, nil
	case !c.config.Server:
		idle := c.idleLocked(id)
		c.mu.Unlock()
		if idle {
			return nil, &ConnError{ProtocolError, "HEADERS for a stream that was never opened"}
		}
		return nil, c.late()
	case id%2 == 0:
		c.mu.Unlock()
		return nil, &ConnError{ProtocolError, "a client's stream with an even id"}
	case id <= c.lastPeer:
		found, byUs := c.ring.find(id)
		c.mu.Unlock()
		switch {
		case byUs:
			return nil, c.late()
		case found:
			return nil, &ConnError{StreamClosed, "HEADERS for a closed stream"}
		}
		return nil, &ConnError{ProtocolError, "stream ids must grow"}
	}
	full, unread := len(c.streams) >= int(c.config.Streams), c.kept > min(maxHeld, c.config.Kept.most())
	drained := c.drained
	if !drained {
		c.lastPeer = id
	}
	c.mu.Unlock()
	switch {
	case drained:
		return nil, c.late() // the peer knows that it will not be answered
	case full:
		return nil, &streamError{id, RefusedStream, "too many streams at once"}
	case unread:
		return nil, &streamError{id, RefusedStream, "the answers to the others are not read"}
	}
	return c.accept(id)
}

func (c *Conn) accept(id uint32) (*Stream, error) {
	s := c.config.Owner.Accept()
	if s == nil {
		return nil, &streamError{id, RefusedStream, "no new streams here"}
	}
	s.init(c, id)
	c.mu.Lock()
	c.openLocked(s)
	c.mu.Unlock()
	return s, nil
}

func (c *Conn) reset(h frameHeader, p []byte) error {
	if h.length != 4 {
		return &ConnError{FrameSizeError, "RST_STREAM of a wrong size"}
	}
	s, err := c.stream(h)
	if err != nil {
		return err
	}
	if s == nil {
		return c.late()
	}
	c.mu.Lock()
	early := !s.sentEnd
	c.removeLocked(s)
	c.Touch(c) // that may have opened the window
	c.mu.Unlock()
	s.handler.Reset(Code(binary.BigEndian.Uint32(p)), nil)
	if early && c.config.Server && c.resets.add(1, c.config.Resets) {
		return &ConnError{EnhanceYourCalm, "too many streams are reset"}
	}
	return nil
}

func (c *Conn) windowUpdate(h frameHeader, p []byte) error {
	if h.length != 4 {
		return &ConnError{FrameSizeError, "WINDOW_UPDATE of a wrong size"}
	}
	n := int64(binary.BigEndian.Uint32(p) & maxWindow)
	if err := c.useless(); err != nil {
		return err
	}
	if h.id == 0 {
		c.mu.Lock()
		c.sendWindow += n
		over := c.sendWindow > maxWindow
		c.mu.Unlock()
		switch {
		case n == 0:
			return &ConnError{ProtocolError, "WINDOW_UPDATE of nothing"}
		case over:
			return &ConnError{FlowControlError, "the connection's window overflows"}
		}
		c.Touch(c)
		return nil
	}
	s, err := c.stream(h)
	if s == nil || err != nil {
		return err
	}
	c.mu.Lock()
	s.sendWindow += n
	over := s.sendWindow > maxWindow
	s.readyLocked()
	c.mu.Unlock()
	switch {
	case n == 0:
		return &streamError{h.id, ProtocolError, "WINDOW_UPDATE of nothing"}
	case over:
		return &streamError{h.id, FlowControlError, "the stream's window overflows"}
	}
	c.Touch(c)
	return nil
}

func (c *Conn) settings(h frameHeader, p []byte) error {
	switch {
	case h.id != 0:
		return &ConnError{ProtocolError, "SETTINGS on a stream"}
	case h.flags&flagAck != 0 && h.length != 0, h.length%6 != 0:
		return &ConnError{FrameSizeError, "SETTINGS of a wrong size"}
	case h.flags&flagAck != 0:
		c.mu.Lock()
		c.resizedLocked()
		c.mu.Unlock()
		c.Touch(c)
		return nil
	}
	c.mu.Lock()
	var err error
	if !c.settled {
		c.peerStreams = 1<<32 - 1 // unlimited unless it says otherwise
	}
	window := c.peerWindow // of several in a frame, the last one counts
	for ; len(p) > 0 && err == nil; p = p[6:] {
		err = c.settingLocked(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:]), &window)
	}
	walked := 0
	if err == nil && window != c.peerWindow {
		walked = len(c.streams)
		err = c.peerWindowLocked(window)
	}
	c.out = appendHeader(c.out, 0, frameSettings, flagAck, 0)
	err = c.boundedLocked(err)
	c.mu.Unlock()
	if err == nil {
		err = c.noisy(walked / walkNoise)
	}
	if err != nil {
		return err
	}
	c.settled = true
	c.Touch(c)
	c.config.Owner.Settled()
	return nil
}

func (c *Conn) settingLocked(id uint16, v uint32, window *int64) error {
	switch id {
	case settingHeaderTableSize:
		c.enc.SetMaxDynamicTableSize(min(v, 4096))
	case settingEnablePush:
		if v > 1 || v == 1 && !c.config.Server {
			return &ConnError{ProtocolError, "SETTINGS_ENABLE_PUSH"}
		}
	case settingMaxStreams:
		c.peerStreams = v
	case settingInitialWindow:
		if v > maxWindow {
			return &ConnError{FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE beyond 2^31-1"}
		}
		*window = int64(v)
	case settingMaxFrame:
		if v < maxFrame || v > 1<<24-1 {
			return &ConnError{ProtocolError, "SETTINGS_MAX_FRAME_SIZE"}
		}
	case settingConnect:
		if v > 1 || v == 0 && c.peerConnect {
			return &ConnError{ProtocolError, "SETTINGS_ENABLE_CONNECT_PROTOCOL"}
		}
		c.peerConnect = v == 1
	}
	return nil
}

// peerWindowLocked changes what may be sent on all streams, which may make windows
// negative (section 6.9.2).
func (c *Conn) peerWindowLocked(window int64) error {
	change := window - c.peerWindow
	c.peerWindow = window
	for _, s := range c.streams {
		if s.sendWindow += change; s.sendWindow > maxWindow {
			return &ConnError{FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE overflows a window"}
		}
		s.readyLocked()
	}
	return nil
}

func (c *Conn) ping(h frameHeader, p []byte) error {
	switch {
	case h.id != 0:
		return &ConnError{ProtocolError, "PING on a stream"}
	case h.length != 8:
		return &ConnError{FrameSizeError, "PING of a wrong size"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Touch(c)
	if h.flags&flagAck != 0 {
		if string(p) == leavePing {
			c.leftLocked()
		}
		return nil
	}
	c.out = appendHeader(c.out, 8, framePing, flagAck, 0)
	c.out = append(c.out, p...)
	return c.boundedLocked(nil)
}

// boundedLocked refuses to queue answers without end for a peer that reads none.
func (c *Conn) boundedLocked(err error) error {
	if err == nil && len(c.out) > maxOut {
		return &ConnError{EnhanceYourCalm, "what is sent is not read"}
	}
	return err
}

func (c *Conn) priority(h frameHeader, p []byte) error {
	switch {
	case h.id == 0:
		return &ConnError{ProtocolError, "PRIORITY without a stream"}
	case h.length != 5:
		return &streamError{h.id, FrameSizeError, "PRIORITY of a wrong size"}
	case binary.BigEndian.Uint32(p)&maxStreamID == h.id:
		return &streamError{h.id, ProtocolError, "a stream that depends on itself"}
	}
	return nil
}

func (c *Conn) goAway(h frameHeader, p []byte) error {
	switch {
	case h.id != 0:
		return &ConnError{ProtocolError, "GOAWAY on a stream"}
	case h.length < 8:
		return &ConnError{FrameSizeError, "GOAWAY of a wrong size"}
	}
	last := binary.BigEndian.Uint32(p) & maxStreamID
	away := &GoAwayError{Code: Code(binary.BigEndian.Uint32(p[4:])), Debug: string(p[8:min(len(p), 8+256)])}
	var unseen []*Stream
	c.mu.Lock()
	if away.Code != NoError && c.dead == nil {
		c.dead = fmt.Errorf("%w", away)
	}
	if !c.config.Server {
		c.away = true
		for id, s := range c.streams {
			if id > last {
				unseen = append(unseen, s)
			}
		}
		for _, s := range unseen {
			c.removeLocked(s)
		}
	} else {
		c.away, c.leaving = true, true
	}
	c.closeIfDoneLocked()
	c.Touch(c)
	c.mu.Unlock()
	c.config.Owner.Away()
	for _, s := range unseen {
		s.handler.Reset(RefusedStream, away)
	}
	return nil
}
