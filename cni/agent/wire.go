package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// What a Request may ask.
const (
	Add    = "ADD"    // redirect the pod's traffic
	Status = "STATUS" // say whether you serve
)

// Request is one question. Of the annotations only those that begin with
// cluster.Prefix matter.
type Request struct {
	Command     string            `json:"command"`
	Pod         string            `json:"pod,omitempty"` // NAMESPACE/NAME, for the log
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Reply is the answer; an empty Error means done.
type Reply struct {
	Error string `json:"error,omitempty"`
}

// maxPacket bounds a packet, in bytes. Kubernetes allows a pod 256 KiB of
// annotations; ours are lists of ports.
const maxPacket = 64 << 10

// patience is how long either side waits for the other.
const patience = 30 * time.Second

// Ask sends the agent behind socket a request about the pod in netns, which
// may be nil, and waits for its reply.
func Ask(ctx context.Context, socket string, request Request, netns *os.File) error {
	packet, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if len(packet) > maxPacket {
		return fmt.Errorf("the pod's annotations have %d bytes, at most %d are understood", len(packet), maxPacket)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("the node's tulle-cni agent is not there (%w); it comes with the DaemonSet tulle-cni, look with: kubectl -n tulle-system get pods -o wide", err)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	var rights []byte
	if netns != nil {
		rights = unix.UnixRights(int(netns.Fd()))
	}
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix(packet, rights, nil); err != nil {
		return fmt.Errorf("ask the tulle-cni agent: %w", err)
	}
	answer := make([]byte, maxPacket)
	n, err := conn.Read(answer)
	if err != nil {
		return fmt.Errorf("the tulle-cni agent gave no answer: %w", err)
	}
	var reply Reply
	if err := json.Unmarshal(answer[:n], &reply); err != nil {
		return fmt.Errorf("the tulle-cni agent's answer: %w", err)
	}
	if reply.Error != "" {
		return errors.New(reply.Error)
	}
	return nil
}

// receive reads one request and the file that came with it, which the caller
// closes; it is nil if none came.
func receive(conn *net.UnixConn) (Request, *os.File, error) {
	var request Request
	packet, rights := make([]byte, maxPacket+1), make([]byte, unix.CmsgSpace(4))
	n, rn, flags, _, err := conn.ReadMsgUnix(packet, rights)
	if err != nil {
		return request, nil, err
	}
	netns, err := passed(rights[:rn])
	if err != nil {
		return request, nil, err
	}
	switch {
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("the request is too long")
	default:
		err = json.Unmarshal(packet[:n], &request)
	}
	if err != nil && netns != nil {
		netns.Close()
	}
	return request, netns, err
}

// passed returns the file descriptor in a control message.
func passed(rights []byte) (*os.File, error) {
	if len(rights) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "the pod's network namespace"))
		}
	}
	if len(files) != 1 {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("%d files came with the request, want one", len(files))
	}
	return files[0], nil
}
