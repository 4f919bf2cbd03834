package discovery

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// Strict tells whether the pods of a cluster's namespace refuse callers without
// an identity; false for ok as long as no cluster is known.
func (s *Snapshot) Strict(namespace string) (strict, ok bool) {
	if s.cluster == nil {
		return false, false
	}
	return s.cluster.strict[namespace], true
}

// WatchPolicy sends the policy of the caller's namespace. Where no cluster is
// known there is none, and the proxy keeps to what it was started with.
func (s *Server) WatchPolicy(_ *tullev1.WatchPolicyRequest, stream grpc.ServerStreamingServer[tullev1.Policy]) error {
	ctx := stream.Context()
	id, ok := s.config.PeerID(ctx)
	if !ok {
		return status.Error(codes.Unimplemented, "no policies here")
	}
	caller := s.config.Caller(ctx)
	if !s.enter(caller) {
		return s.tooMany()
	}
	defer s.leave(caller, 1)
	for first, sent := true, false; ; {
		snapshot, changed := s.config.State.Watch()
		if strict, ok := snapshot.Strict(id.Namespace); ok && (first || strict != sent) {
			if err := stream.Send(&tullev1.Policy{Strict: strict}); err != nil {
				return err
			}
			first, sent = false, strict
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}
