package check

import (
	"encoding/xml"
	"io"
)

// JUnit writes the results in the format that pipelines read test reports in.
func JUnit(w io.Writer, results []Result) error {
	type message struct {
		Text string `xml:"message,attr"`
	}
	type testCase struct {
		Group   string   `xml:"classname,attr"`
		Name    string   `xml:"name,attr"`
		Failure *message `xml:"failure,omitempty"`
		Skipped *message `xml:"skipped,omitempty"`
		Output  string   `xml:"system-out,omitempty"`
	}
	suite := struct {
		XMLName  xml.Name   `xml:"testsuite"`
		Name     string     `xml:"name,attr"`
		Tests    int        `xml:"tests,attr"`
		Failures int        `xml:"failures,attr"`
		Skipped  int        `xml:"skipped,attr"`
		Cases    []testCase `xml:"testcase"`
	}{Name: "tulle check", Tests: len(results)}
	for _, r := range results {
		c := testCase{Group: r.Group, Name: r.Check}
		text := r.Detail
		if r.Fix != "" {
			text += " -> " + r.Fix
		}
		switch r.Verdict {
		case Failed:
			suite.Failures++
			c.Failure = &message{text}
		case Skipped:
			suite.Skipped++
			c.Skipped = &message{text}
		default:
			c.Output = text
		}
		suite.Cases = append(suite.Cases, c)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(suite); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}
