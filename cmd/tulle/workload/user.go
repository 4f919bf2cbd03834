package workload

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/tulle-mesh/tulle/mesh"
)

// account is who a command runs as.
type account struct {
	credential *syscall.Credential // nil: as the caller does
	name, home string
}

// lookupUser reads NAME or UID, and optionally :GROUP or :GID.
func lookupUser(spec string) (account, error) {
	if spec == "" {
		return account{}, nil
	}
	who, group, hasGroup := strings.Cut(spec, ":")
	a := account{credential: &syscall.Credential{}, name: who, home: "/"}
	u, err := user.Lookup(who)
	if err != nil {
		u, err = user.LookupId(who)
	}
	var unknown user.UnknownUserIdError
	switch {
	case err == nil:
		a.name, a.home = u.Username, u.HomeDir
		uid, err1 := parseID(u.Uid)
		gid, err2 := parseID(u.Gid)
		if err := errors.Join(err1, err2); err != nil {
			return a, err
		}
		a.credential.Uid, a.credential.Gid = uid, gid
	case errors.As(err, &unknown): // a number without a name is fine
		uid, err := parseID(who)
		if err != nil {
			return a, err
		}
		a.credential.Uid, a.credential.Gid = uid, uid
	default:
		return a, fmt.Errorf("user %q: there is none of that name", who)
	}
	if hasGroup {
		if a.credential.Gid, err = lookupGroup(group); err != nil {
			return a, err
		}
	} else if u != nil {
		a.credential.Groups = supplementary(u)
	}
	if a.credential.Uid == mesh.ProxyUID {
		return a, fmt.Errorf("user %q: that is the proxy's own user (uid %d), whose traffic the mesh leaves alone; choose another", who, mesh.ProxyUID)
	}
	return a, nil
}

func lookupGroup(group string) (uint32, error) {
	if g, err := user.LookupGroup(group); err == nil {
		return parseID(g.Gid)
	}
	gid, err := parseID(group)
	if err != nil {
		return 0, fmt.Errorf("group %q: there is none of that name", group)
	}
	return gid, nil
}

func supplementary(u *user.User) []uint32 {
	ids, err := u.GroupIds()
	if err != nil {
		return nil
	}
	var groups []uint32
	for _, id := range ids {
		if gid, err := parseID(id); err == nil {
			groups = append(groups, gid)
		}
	}
	return groups
}

// parseID leaves out 2^32-1, which to the kernel means "no change".
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, fmt.Errorf("%q is no user or group id", s)
	}
	return uint32(n), nil
}
