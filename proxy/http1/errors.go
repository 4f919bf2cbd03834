package http1

// Error says why a message was refused. Errors are shared and must not be
// changed; they compare with == to themselves and match with errors.As.
type Error struct {
	Status int    // what to answer: 400, 414, 431, 501 or 505 to a request, 502 for a response
	Code   string // the shape's short name, for instance "bare-lf"; goes into the tulle-error header
	Text   string // one sentence for a person
}

// Error returns code and text.
func (e *Error) Error() string { return "http/1: " + e.Code + ": " + e.Text }

// shape is the index of an error; internal functions return it so that one
// check serves requests (4xx, 5xx) and responses (502). Zero is no error.
type shape uint8

const (
	ok shape = iota
	emptyStart
	badMethod
	badTarget
	badVersion
	otherVersion
	longTarget
	headTooLarge
	tooManyFields
	bareLF
	bareCR
	controlByte
	obsFold
	spaceBeforeColon
	emptyName
	badName
	underscoreName
	noHost
	twoHosts
	badHost
	hostMismatch
	lengthAndCoding
	twoLengths
	badLength
	twoCodings
	badCoding
	unknownCoding
	codingInHTTP10
	connectionNamesFraming
	connectWithBody
	badStatusLine
	unaskedSwitch
	interimWithBody
	badChunkSize
	chunkTooLarge
	chunkLineTooLong
	chunkOverhead
	badChunkEnd
	trailerTooLarge
	forbiddenTrailer
	shapes // their number
)

var errorTexts = [shapes]Error{
	emptyStart:             {400, "empty-start", "an empty line stands where the message should start"},
	badMethod:              {400, "bad-method", "the method is not a token of at most 32 characters"},
	badTarget:              {400, "bad-target", "the request target is not one that this method may have"},
	badVersion:             {400, "bad-version", "the start line does not carry HTTP/1.0 or HTTP/1.1"},
	otherVersion:           {505, "other-version", "only HTTP/1.0 and HTTP/1.1 are spoken here"},
	longTarget:             {414, "long-target", "the request line is longer than 64 KiB"},
	headTooLarge:           {431, "head-too-large", "the head is longer than 64 KiB"},
	tooManyFields:          {431, "too-many-fields", "the head has more than 1000 fields"},
	bareLF:                 {400, "bare-lf", "a line ends with LF without CR"},
	bareCR:                 {400, "bare-cr", "a CR is not followed by LF"},
	controlByte:            {400, "control-byte", "a control byte stands in a field value"},
	obsFold:                {400, "obs-fold", "a field is folded over several lines"},
	spaceBeforeColon:       {400, "space-before-colon", "white space stands between a field name and its colon"},
	emptyName:              {400, "empty-name", "a field has no name"},
	badName:                {400, "bad-name", "a field name is not a token"},
	underscoreName:         {400, "underscore-name", "a framing field is spelled with an underscore"},
	noHost:                 {400, "no-host", "the Host field is missing"},
	twoHosts:               {400, "two-hosts", "there is more than one Host field"},
	badHost:                {400, "bad-host", "the host is not a name or address with an optional port"},
	hostMismatch:           {400, "host-mismatch", "the host of the request target is not that of the Host field"},
	lengthAndCoding:        {400, "length-and-coding", "Content-Length and Transfer-Encoding exclude each other"},
	twoLengths:             {400, "two-lengths", "there is more than one Content-Length"},
	badLength:              {400, "bad-length", "Content-Length is not a plain decimal number"},
	twoCodings:             {400, "two-codings", "there is more than one Transfer-Encoding field"},
	badCoding:              {400, "bad-coding", "Transfer-Encoding does not end the message with chunked"},
	unknownCoding:          {501, "unknown-coding", "only the transfer coding chunked is known here"},
	codingInHTTP10:         {400, "coding-in-http10", "HTTP/1.0 has no Transfer-Encoding"},
	connectionNamesFraming: {400, "connection-names-framing", "the Connection field names a field that frames or routes the message"},
	connectWithBody:        {400, "connect-with-body", "a CONNECT request has no content"},
	badStatusLine:          {400, "bad-status-line", "the answer does not start with an HTTP/1.x status line"},
	unaskedSwitch:          {400, "unasked-switch", "the server switches protocols without having been asked"},
	interimWithBody:        {400, "interim-with-body", "an interim answer announces content"},
	badChunkSize:           {400, "bad-chunk-size", "a chunk does not start with a plain hexadecimal size"},
	chunkTooLarge:          {400, "chunk-too-large", "a chunk is larger than 2^62 bytes"},
	chunkLineTooLong:       {400, "chunk-line-too-long", "the line of a chunk is longer than 256 bytes"},
	chunkOverhead:          {400, "chunk-overhead", "there is much more chunk framing than content"},
	badChunkEnd:            {400, "bad-chunk-end", "a chunk does not end where its size says"},
	trailerTooLarge:        {431, "trailer-too-large", "the trailer section is longer than 64 KiB or has more than 1000 fields"},
	forbiddenTrailer:       {400, "forbidden-trailer", "a trailer field may not frame or route the message"},
}

// The same shapes as errors of a request (or of any body) and of a response.
var requestErrors, responseErrors = errorTexts, asResponse(errorTexts)

func asResponse(errs [shapes]Error) [shapes]Error {
	for i := range errs {
		errs[i].Status = 502
	}
	return errs
}
