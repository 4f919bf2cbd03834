package discovery

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/tulle-mesh/tulle/mesh"
)

// Bounds of a catalog file.
const (
	maxCatalogSize     = 1 << 20 // bytes
	maxCatalogServices = 4096
	maxCatalogList     = 256 // addresses or ports of one service
	maxCatalogErrors   = 20  // shown
)

// CatalogService is a service that is not run by Tulle.
type CatalogService struct {
	Name      string
	Endpoints []CatalogEndpoint
	Ports     []uint16 // sorted
	Protocol  mesh.Protocol
	Line      int // in the file
}

// CatalogServices is the content of a catalog file.
type CatalogServices struct {
	File     string // its name, for errors
	Services []CatalogService
}

// ParseCatalog reads a catalog file:
//
//	services:
//	  - name: billing
//	    addresses: [192.0.2.10, "192.0.2.11:8081", "2001:db8::1"]
//	    ports: [8080]
//	    protocol: http/1 # optional: http/1, http/2 or tcp
//
// The error joins all that is wrong, each with its line. What the file says is
// used as a whole or not at all.
func ParseCatalog(file string, content []byte) (*CatalogServices, error) {
	c := &catalogParser{file: file}
	if len(content) > maxCatalogSize {
		return nil, fmt.Errorf("%s: %d bytes, at most %d are allowed", file, len(content), maxCatalogSize)
	}
	root, err := decodeYAML(file, content)
	if err != nil {
		return nil, err
	}
	services := c.document(root)
	if err := c.err(); err != nil {
		return nil, err
	}
	return &CatalogServices{File: file, Services: services}, nil
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// decodeYAML returns the one document's top node, nil if the file is empty.
func decodeYAML(file string, content []byte) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var document, second yaml.Node
	err := decoder.Decode(&document)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err == nil {
		if err = decoder.Decode(&second); err == nil {
			return nil, fmt.Errorf("%s:%d: a second document; put all services into one list", file, second.Line)
		}
	}
	if errors.Is(err, io.EOF) {
		return document.Content[0], nil
	}
	// The library names the line where the spoilt block begins, at times the one
	// above it, and none for the first line.
	text, line := err.Error(), "1"
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		text = strings.TrimPrefix(text, m[0])
		line = cmp.Or(m[1], line)
	}
	return nil, fmt.Errorf("%s:%s: not valid YAML, here or below: %s", file, line, text)
}

// catalogParser reads the nodes itself: yaml's own decoding stops at the first
// mistake and tells no lines of values that are out of range.
type catalogParser struct {
	file    string
	service string // the one being read, for errors
	errs    []error
	more    int // errors beyond those kept
}

func (c *catalogParser) fail(node *yaml.Node, format string, args ...any) {
	if len(c.errs) == maxCatalogErrors {
		c.more++
		return
	}
	where := ""
	if c.service != "" {
		where = fmt.Sprintf("service %q: ", c.service)
	}
	c.errs = append(c.errs, fmt.Errorf("%s:%d: %s%s", c.file, node.Line, where, fmt.Sprintf(format, args...)))
}

func (c *catalogParser) err() error {
	if c.more > 0 {
		c.errs = append(c.errs, fmt.Errorf("%s: and %d more", c.file, c.more))
	}
	return errors.Join(c.errs...)
}

// field is one key that a mapping may have.
type field struct {
	key  string
	read func(*yaml.Node)
}

// mapping reads a node that must be a mapping of the given fields, each at most once.
func (c *catalogParser) mapping(node *yaml.Node, fields []field) {
	if node.Kind != yaml.MappingNode {
		c.fail(node, "must have the form \"%s: …\", not be %s", fields[0].key, describe(node))
		return
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		j := slices.IndexFunc(fields, func(f field) bool { return f.key == key.Value })
		switch {
		case j < 0:
			c.fail(key, "unknown field %s; known are %s", quote(key.Value), knownFields(fields))
		case seen[key.Value]:
			c.fail(key, "field %q appears twice", key.Value)
		default:
			seen[key.Value] = true
			fields[j].read(value)
		}
	}
}

func knownFields(fields []field) string {
	var keys []string
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	return strings.Join(keys, ", ")
}

func (c *catalogParser) document(root *yaml.Node) []CatalogService {
	var services []CatalogService
	if root == nil || isNull(root) {
		return nil // an empty file: no services
	}
	c.mapping(root, []field{{"services", func(node *yaml.Node) {
		for _, item := range c.sequence(node, "services", maxCatalogServices) {
			services = append(services, c.readService(item))
		}
	}}})
	c.service = ""
	c.checkUnique(services)
	return services
}

func (c *catalogParser) readService(node *yaml.Node) CatalogService {
	s := CatalogService{Line: node.Line}
	c.service = nameIn(node)
	var hasPorts, hasAddresses bool
	c.mapping(node, []field{
		{"name", func(n *yaml.Node) { s.Name = c.name(n) }},
		{"addresses", func(n *yaml.Node) { hasAddresses = true; s.Endpoints = c.addresses(n) }},
		{"ports", func(n *yaml.Node) { hasPorts = true; s.Ports = c.ports(n) }},
		{"protocol", func(n *yaml.Node) { s.Protocol = c.protocol(n) }},
	})
	if node.Kind != yaml.MappingNode {
		return s
	}
	if c.service == "" {
		c.fail(node, "a service without a name; add \"name: …\"")
	}
	if !hasAddresses {
		c.fail(node, "has no addresses; add \"addresses: [192.0.2.10]\"")
	}
	if !hasPorts {
		c.fail(node, "has no ports; add \"ports: [8080]\"")
	}
	return s
}

// nameIn finds the name ahead of the other fields, whose errors quote it.
func nameIn(node *yaml.Node) string {
	if node.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == "name" && node.Content[i+1].Kind == yaml.ScalarNode {
				return shorten(node.Content[i+1].Value)
			}
		}
	}
	return ""
}

func (c *catalogParser) name(node *yaml.Node) string {
	text := c.scalar(node, "name")
	if err := mesh.CheckName(text); err != nil {
		c.fail(node, "name %s: must have 1 to 63 characters of a-z, 0-9 and inner '-'", quote(text))
	}
	return text
}

func (c *catalogParser) ports(node *yaml.Node) []uint16 {
	var ports []uint16
	for _, item := range c.list(node, "ports") {
		text := c.scalar(item, "port")
		port, err := strconv.ParseUint(text, 10, 16)
		switch {
		case err != nil || port == 0:
			if _, err := strconv.Atoi(text); err != nil {
				text = quote(text)
			}
			c.fail(item, "port %s: must be 1 to 65535", text)
		case slices.Contains(ports, uint16(port)):
			c.fail(item, "port %d appears twice", port)
		default:
			ports = append(ports, uint16(port))
		}
	}
	slices.Sort(ports)
	return ports
}

func (c *catalogParser) protocol(node *yaml.Node) mesh.Protocol {
	text := c.scalar(node, "protocol")
	for _, p := range []mesh.Protocol{mesh.HTTP1, mesh.HTTP2, mesh.TCP} {
		if p.String() == text {
			return p
		}
	}
	c.fail(node, "protocol %s: must be http/1, http/2 or tcp", quote(text))
	return mesh.Unknown
}

func (c *catalogParser) addresses(node *yaml.Node) []CatalogEndpoint {
	var endpoints []CatalogEndpoint
	for _, item := range c.list(node, "addresses") {
		text := c.scalar(item, "address")
		e, err := parseEndpoint(text)
		switch {
		case err != nil:
			c.fail(item, "address %s: %s", quote(text), err)
		case slices.Contains(endpoints, e):
			c.fail(item, "address %s appears twice", quote(text))
		default:
			endpoints = append(endpoints, e)
		}
	}
	return endpoints
}

// parseEndpoint reads "192.0.2.10", "2001:db8::1", or either with a port.
func parseEndpoint(text string) (CatalogEndpoint, error) {
	var e CatalogEndpoint
	if len(text) > maxAddressLength {
		return e, errors.New("is too long for an IP address")
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		ap, err := netip.ParseAddrPort(text)
		switch {
		case err != nil:
			return e, errors.New("must be an IP address, or IP:PORT or [IPv6]:PORT; of a host name, list the addresses it has")
		case ap.Port() == 0:
			return e, errors.New("port 0: must be 1 to 65535")
		}
		addr, e.Port = ap.Addr(), ap.Port()
	}
	e.Addr = addr.Unmap()
	switch {
	case addr.Zone() != "":
		return e, errors.New("has a zone, which means nothing to other machines")
	case addr.IsUnspecified() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return e, errors.New("cannot be dialled")
	case addr.IsLoopback():
		return e, errors.New("is loopback, which every workload has for itself; use an address that workloads can reach")
	}
	return e, nil
}

// checkUnique refuses two services of one name or at one address and port.
func (c *catalogParser) checkUnique(services []CatalogService) {
	names := make(map[string]int)
	owners := make(map[netip.AddrPort]string)
	for _, s := range services {
		at := &yaml.Node{Line: s.Line}
		if line, ok := names[s.Name]; ok && s.Name != "" {
			c.fail(at, "service %q: is on line %d already; list all its addresses there", s.Name, line)
			continue
		}
		names[s.Name] = s.Line
		service := Service{Endpoints: s.Endpoints, Ports: s.Ports}
		for _, addr := range service.listedAddrs() {
			if owner, ok := owners[addr]; ok && owner != s.Name {
				c.fail(at, "service %q: %s belongs to service %q already", s.Name, addr, owner)
				break // the other ports would say the same
			}
			owners[addr] = s.Name
		}
	}
}

// list reads a sequence that must not be empty.
func (c *catalogParser) list(node *yaml.Node, what string) []*yaml.Node {
	items := c.sequence(node, what, maxCatalogList)
	if node.Kind == yaml.SequenceNode && len(node.Content) == 0 {
		c.fail(node, "%s: must not be empty", what)
	}
	return items
}

func (c *catalogParser) sequence(node *yaml.Node, what string, limit int) []*yaml.Node {
	switch {
	case isNull(node) && what == "services":
		return nil
	case node.Kind != yaml.SequenceNode:
		c.fail(node, "%s: must be a list, not %s", what, describe(node))
		return nil
	case len(node.Content) > limit:
		c.fail(node, "%s: %d entries, at most %d are allowed", what, len(node.Content), limit)
		return nil
	}
	return node.Content
}

func (c *catalogParser) scalar(node *yaml.Node, what string) string {
	if node.Kind != yaml.ScalarNode || isNull(node) {
		c.fail(node, "%s: must be a plain value, not %s", what, describe(node))
		return ""
	}
	return node.Value
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null"
}

func describe(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	case yaml.ScalarNode:
		if isNull(node) {
			return "empty"
		}
		return quote(node.Value)
	}
	return "empty"
}

func quote(s string) string { return strconv.Quote(shorten(s)) }

// maxQuoted bounds what errors quote of the file, in bytes.
const maxQuoted = 80

func shorten(s string) string {
	if len(s) > maxQuoted {
		return strings.ToValidUTF8(s[:maxQuoted], "") + "…"
	}
	return s
}
