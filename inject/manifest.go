package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// templates tells where each kind of workload has its template of pods.
var templates = map[string][]string{
	"v1/Pod":                   {},
	"v1/ReplicationController": {"spec", "template"},
	"apps/v1/Deployment":       {"spec", "template"},
	"apps/v1/StatefulSet":      {"spec", "template"},
	"apps/v1/DaemonSet":        {"spec", "template"},
	"apps/v1/ReplicaSet":       {"spec", "template"},
	"batch/v1/Job":             {"spec", "template"},
	"batch/v1/CronJob":         {"spec", "jobTemplate", "spec", "template"},
}

// Done tells what Manifest did about one object.
type Done struct {
	Kind, Name string
	Injected   bool
	Skipped    string // why not; "": it has a proxy already
	Warnings   []string
}

// Manifest puts the proxy into the workloads of a YAML or JSON stream. Documents
// that are not changed come out byte for byte; of the others, comments and order
// stay. What has a proxy already is left alone, so that the output put in again
// comes out the same. An error names the document.
func (c Config) Manifest(stream []byte) ([]byte, []Done, error) {
	var out bytes.Buffer
	var done []Done
	for i, document := range splitDocuments(stream) {
		changed, of, err := c.document(document)
		if err != nil {
			return nil, nil, fmt.Errorf("document %d: %w", i+1, err)
		}
		done = append(done, of...)
		out.Write(changed)
	}
	return out.Bytes(), done, nil
}

// separator starts a document (YAML 1.2 section 9.1.2). Inside of block scalars
// each line is indented, so that none can be taken for one.
var separator = regexp.MustCompile(`(?m)^---(?:[ \t\r]|$)`)

// splitDocuments cuts a stream before each separator.
func splitDocuments(stream []byte) [][]byte {
	var documents [][]byte
	start := 0
	for _, at := range separator.FindAllIndex(stream, -1) {
		if at[0] > start {
			documents = append(documents, stream[start:at[0]])
			start = at[0]
		}
	}
	return append(documents, stream[start:])
}

func (c Config) document(document []byte) ([]byte, []Done, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(document, &root); err != nil {
		return nil, nil, fmt.Errorf("not valid YAML: %w", err)
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) != 1 {
		return document, nil, nil // comments, or nothing
	}
	done, err := c.object(root.Content[0])
	if err != nil {
		return nil, nil, err
	}
	changed := false
	for _, d := range done {
		changed = changed || d.Injected
	}
	if !changed {
		return document, done, nil
	}
	var out bytes.Buffer
	if separator.Match(document[:min(len(document), 4)]) {
		out.WriteString("---\n")
	}
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := errors.Join(encoder.Encode(&root), encoder.Close()); err != nil {
		return nil, nil, err
	}
	return out.Bytes(), done, nil
}

// object changes one object, or the items of a list.
func (c Config) object(node *yaml.Node) ([]Done, error) {
	kind, version := text(node, "kind"), text(node, "apiVersion")
	if items := child(node, "items"); items != nil && strings.HasSuffix(kind, "List") && items.Kind == yaml.SequenceNode {
		var done []Done
		for _, item := range items.Content {
			d, err := c.object(item)
			if err != nil {
				return nil, err
			}
			done = append(done, d...)
		}
		return done, nil
	}
	path, ok := templates[version+"/"+kind]
	if !ok {
		return nil, nil
	}
	metadata := child(node, "metadata")
	d := Done{Kind: kind, Name: text(metadata, "name")}
	template := node
	for _, name := range path {
		if template = child(template, name); template == nil {
			return nil, fmt.Errorf("%s %s: it has no template of pods", kind, d.Name)
		}
	}
	object, err := toJSON(template)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind, d.Name, err)
	}
	from := Origin{Namespace: text(metadata, "namespace"), Job: strings.HasSuffix(kind, "Job")}
	if len(path) > 0 {
		from.Workload = d.Name
	}
	result, err := c.Patch(object, from)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind, d.Name, err)
	}
	for _, op := range result.Patch {
		if err := apply(template, op); err != nil {
			return nil, fmt.Errorf("%s %s: %w", kind, d.Name, err)
		}
	}
	d.Injected, d.Skipped, d.Warnings = len(result.Patch) > 0, result.Skipped, result.Warnings
	return []Done{d}, nil
}

func toJSON(node *yaml.Node) ([]byte, error) {
	var value any
	if err := node.Decode(&value); err != nil {
		return nil, err
	}
	return json.Marshal(value)
}

// child returns the value of a key of a mapping, nil if there is none.
func child(node *yaml.Node, key string) *yaml.Node {
	if i := indexOf(node, key); i >= 0 {
		return resolve(node).Content[i+1]
	}
	return nil
}

// indexOf returns where a mapping has a key, -1 if it does not.
func indexOf(node *yaml.Node, key string) int {
	node = resolve(node)
	if node == nil || node.Kind != yaml.MappingNode {
		return -1
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return i
		}
	}
	return -1
}

func resolve(node *yaml.Node) *yaml.Node {
	if node != nil && node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

func text(node *yaml.Node, key string) string {
	if c := resolve(child(node, key)); c != nil && c.Kind == yaml.ScalarNode {
		return c.Value
	}
	return ""
}

// apply makes one step of a patch on a tree of YAML. What an anchor stands for
// elsewhere, too, must not be changed there: that is an error.
func apply(node *yaml.Node, op Operation) error {
	names := strings.Split(op.Path, "/")[1:]
	for i := range names {
		names[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(names[i])
	}
	parent, last := node, names[len(names)-1]
	for _, name := range names[:len(names)-1] {
		next := child(parent, name)
		if parent.Kind == yaml.SequenceNode {
			if n, err := strconv.Atoi(name); err == nil && n < len(parent.Content) {
				next = parent.Content[n]
			}
		}
		if next == nil {
			return fmt.Errorf("%s: there is no %s", op.Path, name)
		}
		if next.Kind == yaml.AliasNode || next.Anchor != "" {
			return fmt.Errorf("%s is shared by an anchor (&%s): write it out", name, next.Anchor+next.Value)
		}
		parent = next
	}
	value, err := toNode(op.Value)
	if err != nil {
		return err
	}
	if parent.Kind == yaml.SequenceNode {
		return insert(parent, last, value)
	}
	if parent.Kind != yaml.MappingNode {
		return fmt.Errorf("%s: not a mapping", op.Path)
	}
	i := indexOf(parent, last)
	switch {
	case op.Op == "remove" && i >= 0:
		parent.Content = append(parent.Content[:i], parent.Content[i+2:]...)
	case op.Op == "remove":
		return fmt.Errorf("%s: there is no %s", op.Path, last)
	case i >= 0:
		parent.Content[i+1] = value
	default:
		parent.Content = append(parent.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: last}, value)
	}
	return nil
}

// insert adds an element where the pointer's last part says: at a number, or at
// the end ("-").
func insert(list *yaml.Node, at string, value *yaml.Node) error {
	n := len(list.Content)
	if at != "-" {
		var err error
		if n, err = strconv.Atoi(at); err != nil || n < 0 || n > len(list.Content) {
			return fmt.Errorf("no place %s in a list of %d", at, len(list.Content))
		}
	}
	list.Content = append(list.Content, nil)
	copy(list.Content[n+1:], list.Content[n:])
	list.Content[n] = value
	return nil
}

// toNode returns a value as block-style YAML, in the order of its JSON.
func toNode(value any) (*yaml.Node, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(b, &document); err != nil {
		return nil, err
	}
	node := document.Content[0]
	plain(node)
	return node, nil
}

// plain takes JSON's quotes and braces off; the encoder puts back the quotes
// that are needed.
func plain(node *yaml.Node) {
	node.Style, node.Line = 0, 0
	for _, c := range node.Content {
		plain(c)
	}
}
