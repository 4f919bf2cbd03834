package cluster

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/mesh"
)

// maxList bounds what one annotation may list.
const maxList = 256

// Ports is a range of ports, both ends included.
type Ports struct{ First, Last uint16 }

// String returns "3306" or "4000-4010".
func (p Ports) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// Contains tells whether port is in the range.
func (p Ports) Contains(port uint16) bool { return p.First <= port && port <= p.Last }

// ContainPort tells whether port is in one of the ranges.
func ContainPort(list []Ports, port uint16) bool {
	return slices.ContainsFunc(list, func(p Ports) bool { return p.Contains(port) })
}

// ParsePorts reads the value of an annotation such as "3306, 4000-4010".
func ParsePorts(value string) ([]Ports, error) {
	var list []Ports
	for item := range strings.SplitSeq(value, ",") {
		item = strings.TrimSpace(item)
		if len(list) == maxList {
			return nil, fmt.Errorf("more than %d entries", maxList)
		}
		first, last, isRange := strings.Cut(item, "-")
		p := Ports{}
		var err error
		if p.First, err = parsePort(first); err != nil {
			return nil, err
		}
		p.Last = p.First
		if isRange {
			if p.Last, err = parsePort(last); err != nil {
				return nil, err
			}
		}
		if p.Last < p.First {
			return nil, fmt.Errorf("%q ends before it begins", item)
		}
		list = append(list, p)
	}
	return list, nil
}

// parsePort takes one spelling only: no sign, no leading zero.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%q is not a port: must be 1 to 65535, or a range such as 4000-4010", s)
	}
	return uint16(n), nil
}

var protocols = map[string]mesh.Protocol{"http/1": mesh.HTTP1, "http/2": mesh.HTTP2, "tcp": mesh.TCP}

// ParseProtocols reads the value of an annotation such as "8080=http/1, 9090=http/2".
func ParseProtocols(value string) (map[uint16]mesh.Protocol, error) {
	declared := make(map[uint16]mesh.Protocol)
	for item := range strings.SplitSeq(value, ",") {
		item = strings.TrimSpace(item)
		if len(declared) == maxList {
			return nil, fmt.Errorf("more than %d entries", maxList)
		}
		number, name, ok := strings.Cut(item, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not of the form PORT=PROTOCOL, such as 8080=http/1", item)
		}
		port, err := parsePort(number)
		if err != nil {
			return nil, err
		}
		protocol, ok := protocols[name]
		if !ok {
			return nil, fmt.Errorf("%q is not a protocol: must be http/1, http/2 or tcp", name)
		}
		if _, again := declared[port]; again {
			return nil, fmt.Errorf("port %d is declared twice", port)
		}
		declared[port] = protocol
	}
	return declared, nil
}
