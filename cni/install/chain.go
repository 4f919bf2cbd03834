package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tulle-mesh/tulle/cni/plugin"
)

// object is JSON whose values stay as they were written.
type object map[string]json.RawMessage

// errNotYet is for a file that holds no configuration (yet).
var errNotYet = errors.New("not a network configuration")

// chain returns the network configuration conf with our plugin, asking socket,
// as the last of its chain, and whether that is a change. A configuration of a
// single plugin becomes a list.
func chain(conf []byte, socket string) (out []byte, changed bool, err error) {
	list, err := parseList(conf)
	if err != nil {
		return nil, false, err
	}
	plugins, err := list.plugins()
	if err != nil {
		return nil, false, err
	}
	ours, err := json.Marshal(map[string]any{
		"type":         plugin.Name,
		"socket":       socket,
		"capabilities": map[string]bool{plugin.Annotations: true},
	})
	if err != nil {
		return nil, false, err
	}
	others := slices.DeleteFunc(slices.Clone(plugins), isOurs)
	if len(others) == 0 {
		return nil, false, errNotYet
	}
	if slices.EqualFunc(plugins, append(others, ours), sameJSON) {
		return conf, false, nil
	}
	text, _, err := unchain(conf)
	if err != nil {
		return nil, false, err
	}
	spans, err := elements(text)
	if err != nil || len(spans) == 0 { // a single plugin, or a list given twice
		list["plugins"], err = json.Marshal(append(others, ours))
		if err != nil {
			return nil, false, err
		}
		out, err = json.MarshalIndent(list, "", "  ")
		return append(out, '\n'), true, err
	}
	end := spans[len(spans)-1].end
	return slices.Concat(text[:end], []byte(",\n  "), ours, text[end:]), true, nil
}

// unchain takes our plugin out of a configuration, and leaves every other byte
// as it is.
func unchain(conf []byte) (out []byte, changed bool, err error) {
	spans, err := elements(conf)
	if err != nil {
		return conf, false, nil //nolint:nilerr // no list: not one of ours
	}
	out = conf
	for i, s := range slices.Backward(spans) {
		if !isOurs(s.raw) {
			continue
		}
		from, to := s.begin, s.end // with the comma before it
		if i == 0 && len(spans) > 1 {
			from, to = s.end-len(s.raw), spans[1].end-len(spans[1].raw)
		}
		out, changed = slices.Concat(out[:from], out[to:]), true
	}
	return out, changed, nil
}

// span is where an element of the list is: from the end of what is before it.
type span struct {
	begin, end int
	raw        json.RawMessage
}

// elements finds the plugins of a list in its text.
func elements(conf []byte) ([]span, error) {
	d := json.NewDecoder(bytes.NewReader(conf))
	if err := expect(d, json.Delim('{')); err != nil {
		return nil, err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		if key != "plugins" {
			var skipped json.RawMessage
			if err := d.Decode(&skipped); err != nil {
				return nil, err
			}
			continue
		}
		if err := expect(d, json.Delim('[')); err != nil {
			return nil, err
		}
		var spans []span
		for d.More() {
			s := span{begin: int(d.InputOffset())}
			if err := d.Decode(&s.raw); err != nil {
				return nil, err
			}
			s.end = int(d.InputOffset())
			spans = append(spans, s)
		}
		return spans, nil
	}
	return nil, errNotYet
}

func expect(d *json.Decoder, delim json.Delim) error {
	token, err := d.Token()
	if err == nil && token != delim {
		err = errNotYet
	}
	return err
}

// parseList reads a configuration, and makes a list of one that has a single
// plugin.
func parseList(conf []byte) (object, error) {
	var o object
	if err := json.Unmarshal(conf, &o); err != nil {
		return nil, errors.Join(errNotYet, err)
	}
	if _, ok := o["plugins"]; ok {
		return o, nil
	}
	if _, ok := o["type"]; !ok {
		return nil, errNotYet
	}
	list := object{}
	for _, key := range []string{"cniVersion", "name"} {
		if value, ok := o[key]; ok {
			list[key] = value
		}
	}
	single := maps.Clone(o)
	delete(single, "cniVersion")
	delete(single, "name")
	raw, err := json.Marshal([]object{single})
	list["plugins"] = raw
	return list, err
}

func (o object) plugins() ([]json.RawMessage, error) {
	var plugins []json.RawMessage
	if err := json.Unmarshal(o["plugins"], &plugins); err != nil {
		return nil, fmt.Errorf("plugins: %w", err)
	}
	return plugins, nil
}

func isOurs(raw json.RawMessage) bool {
	var p struct {
		Type string `json:"type"`
	}
	return json.Unmarshal(raw, &p) == nil && p.Type == plugin.Name
}

// sameJSON compares documents, whatever their spacing.
func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
