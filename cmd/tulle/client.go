package main

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/host"
)

// dialHost returns a client of the daemon whose run directory is given. No
// transport security: only root can open the socket.
func dialHost(run string) (tullev1.HostClient, func(), error) {
	path := host.HostSocket(run)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, notUp(run)
	} else if err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient("unix:"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// The daemon is on this machine: it is back as soon as it is back. But it may
		// take its time to answer; without a limit of its own an attempt would get
		// only as long as the pause between two.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 250 * time.Millisecond},
			MinConnectTimeout: 20 * time.Second,
		}))
	if err != nil {
		return nil, nil, err
	}
	return tullev1.NewHostClient(conn), func() { _ = conn.Close() }, nil
}

func notUp(run string) error {
	if err := host.ErrStray(run); err != nil {
		return err
	}
	return command.WithHint(errors.New("the mesh is not up"), "type: tulle up -d")
}

// hostError is an error of a call to the daemon, as the user should read it.
func hostError(err error) error {
	var call interface {
		error
		GRPCStatus() *status.Status
	}
	if !errors.As(err, &call) {
		return err
	}
	s := call.GRPCStatus()
	if s.Code() == codes.Unavailable {
		return command.WithHint(errors.New("the mesh's daemon has gone; its workloads keep running"), "bring it back with: tulle up -d, or end them with: tulle down")
	}
	return errors.New(s.Message())
}
