package ends

import (
	"fmt"
	"io"
	"net"

	"golang.org/x/net/http2"
)

// grpcServer is the server's end of one connection. A unary call is answered
// when its request is complete; a stream of messages is sent for as long as the
// windows allow.
type grpcServer struct {
	*h2conn
	initial int // window of a new stream
	window  int // of the connection
	streams map[uint32]*grpcStream
	unary   []byte
	message []byte
}

type grpcStream struct {
	endless bool
	window  int
}

func answerGRPC(conn net.Conn) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(conn, preface); err != nil || string(preface) != http2.ClientPreface {
		return
	}
	s := &grpcServer{h2conn: newH2Conn(conn), initial: 65535, window: 65535, streams: map[uint32]*grpcStream{},
		unary: message(unaryMessage), message: message(streamMessage)}
	err := s.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 10000})
	if err == nil {
		err = s.WriteWindowUpdate(0, connWindow-65535)
	}
	for err == nil {
		var f http2.Frame
		if f, err = s.ReadFrame(); err == nil {
			err = s.take(f)
		}
	}
}

func (s *grpcServer) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		if err := s.received(f); err != nil {
			return err
		}
		id := f.StreamID
		s.streams[id] = &grpcStream{endless: s.fields[":path"] == streamPath, window: s.initial}
		if f.StreamEnded() {
			return s.answer(id)
		}
	case *http2.DataFrame:
		if err := s.consume(f); err != nil {
			return err
		}
		if f.StreamEnded() {
			return s.answer(f.StreamID)
		}
	case *http2.RSTStreamFrame:
		delete(s.streams, f.StreamID)
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			s.window += int(f.Increment)
		} else if stream := s.streams[f.StreamID]; stream != nil {
			stream.window += int(f.Increment)
		}
		return s.pump()
	case *http2.SettingsFrame:
		if size, ok := f.Value(http2.SettingInitialWindowSize); ok {
			for _, stream := range s.streams {
				stream.window += int(size) - s.initial
			}
			s.initial = int(size)
		}
		return s.housekeep(f)
	default:
		return s.housekeep(f)
	}
	return nil
}

func (s *grpcServer) answer(id uint32) error {
	stream := s.streams[id]
	if stream == nil {
		return fmt.Errorf("stream %d ends twice", id)
	}
	if err := s.headers(id, false, ":status", "200", "content-type", "application/grpc"); err != nil {
		return err
	}
	if stream.endless {
		return s.pump()
	}
	delete(s.streams, id)
	s.window -= len(s.unary)
	if err := s.WriteData(id, false, s.unary); err != nil {
		return err
	}
	return s.headers(id, true, "grpc-status", "0")
}

// pump sends messages, each in a DATA frame of its own.
func (s *grpcServer) pump() error {
	size := len(s.message)
	for id, stream := range s.streams {
		for stream.endless && stream.window >= size && s.window >= size {
			if err := s.WriteData(id, false, s.message); err != nil {
				return err
			}
			stream.window -= size
			s.window -= size
		}
	}
	return nil
}
