package relay

import (
	"encoding/binary"
	"fmt"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	frameHeaderLen = 9
	minFrameSize   = 16384 // SETTINGS_MAX_FRAME_SIZE before anybody changes it; ours stays there
	maxFrameSize   = 1<<24 - 1
	maxWindow      = 1<<31 - 1
	defaultWindow  = 65535
	maxStreamID    = 1<<31 - 1
)

type frameType uint8

const (
	frameData frameType = iota
	frameHeaders
	framePriority
	frameRST
	frameSettings
	framePush
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	settingHeaderTable    = 1
	settingEnablePush     = 2
	settingMaxStreams     = 3
	settingInitialWindow  = 4
	settingMaxFrame       = 5
	settingMaxHeaderList  = 6
	settingLen            = 6
	maxSettingsInAFrame   = 64
	priorityLen           = 5
	maxGoAwayDebugKept    = 256
	headerFieldOverhead   = 32 // RFC 9113 section 6.5.2
	maxControlFrameBuffer = minFrameSize
)

// errCode is an HTTP/2 error code.
type errCode uint32

const (
	codeNo errCode = iota
	codeProtocol
	codeInternal
	codeFlowControl
	codeSettingsTimeout
	codeStreamClosed
	codeFrameSize
	codeRefused
	codeCancel
	codeCompression
	codeConnect
	codeCalm
	codeInadequateSecurity
	codeHTTP11Required
)

var errCodeNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR",
	"ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

func (e errCode) String() string {
	if int(e) < len(errCodeNames) {
		return errCodeNames[e]
	}
	return fmt.Sprintf("error code %#x", uint32(e))
}

// connError ends the connection, with GOAWAY.
type connError struct {
	code errCode
	text string
}

func (e *connError) Error() string { return fmt.Sprintf("%s: %s", e.code, e.text) }

func connErr(code errCode, format string, args ...any) error {
	return &connError{code: code, text: fmt.Sprintf(format, args...)}
}

// streamError ends one stream, with RST_STREAM.
type streamError struct {
	code errCode
	text string
}

func (e *streamError) Error() string { return fmt.Sprintf("%s: %s", e.code, e.text) }

func streamErr(code errCode, format string, args ...any) error {
	return &streamError{code: code, text: fmt.Sprintf(format, args...)}
}

// frame is a frame header; the payload stands beside it in the read buffer.
type frame struct {
	length int
	kind   frameType
	flags  uint8
	id     uint32
}

func (f frame) has(flag uint8) bool { return f.flags&flag != 0 }

// parseFrame reads the header of the frame at the start of b, which must hold
// at least frameHeaderLen bytes.
func parseFrame(b []byte) frame {
	_ = b[8]
	return frame{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   frameType(b[3]),
		flags:  b[4],
		id:     binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

// checkFrame applies the rules that concern the frame header alone: length, and
// whether the type belongs on a stream or on the connection.
func checkFrame(f frame) error {
	if f.length > minFrameSize {
		return connErr(codeFrameSize, "frame of %d bytes, the limit is %d", f.length, minFrameSize)
	}
	switch f.kind {
	case frameData, frameHeaders, frameContinuation:
		if f.id == 0 {
			return connErr(codeProtocol, "frame of type %d on stream 0", f.kind)
		}
	case framePriority:
		if f.id == 0 {
			return connErr(codeProtocol, "PRIORITY on stream 0")
		}
	case frameRST:
		if f.id == 0 {
			return connErr(codeProtocol, "RST_STREAM on stream 0")
		}
		if f.length != 4 {
			return connErr(codeFrameSize, "RST_STREAM of %d bytes", f.length)
		}
	case frameSettings:
		switch {
		case f.id != 0:
			return connErr(codeProtocol, "SETTINGS on stream %d", f.id)
		case f.has(flagAck) && f.length != 0:
			return connErr(codeFrameSize, "SETTINGS acknowledgement with %d bytes", f.length)
		case f.length%settingLen != 0:
			return connErr(codeFrameSize, "SETTINGS of %d bytes", f.length)
		case f.length > maxSettingsInAFrame*settingLen:
			return connErr(codeCalm, "SETTINGS of %d bytes", f.length)
		}
	case framePush:
		return connErr(codeProtocol, "PUSH_PROMISE, which nobody asked for")
	case framePing:
		if f.id != 0 {
			return connErr(codeProtocol, "PING on stream %d", f.id)
		}
		if f.length != 8 {
			return connErr(codeFrameSize, "PING of %d bytes", f.length)
		}
	case frameGoAway:
		if f.id != 0 {
			return connErr(codeProtocol, "GOAWAY on stream %d", f.id)
		}
		if f.length < 8 {
			return connErr(codeFrameSize, "GOAWAY of %d bytes", f.length)
		}
	case frameWindowUpdate:
		if f.length != 4 {
			return connErr(codeFrameSize, "WINDOW_UPDATE of %d bytes", f.length)
		}
	}
	return nil
}

// unpad takes the padding off a DATA or HEADERS payload.
func unpad(f frame, p []byte) ([]byte, error) {
	if !f.has(flagPadded) {
		return p, nil
	}
	if len(p) == 0 {
		return nil, connErr(codeFrameSize, "padded frame without a pad length")
	}
	pad := int(p[0])
	if pad >= len(p) {
		return nil, connErr(codeProtocol, "padding of %d bytes in a frame of %d", pad, len(p))
	}
	return p[1 : len(p)-pad], nil
}

func appendFrameHeader(b []byte, length int, kind frameType, flags uint8, id uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), byte(kind), flags,
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendRST(b []byte, id uint32, code errCode) []byte {
	b = appendFrameHeader(b, 4, frameRST, 0, id)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func appendWindowUpdate(b []byte, id uint32, n uint32) []byte {
	b = appendFrameHeader(b, 4, frameWindowUpdate, 0, id)
	return binary.BigEndian.AppendUint32(b, n)
}

func appendPing(b []byte, ack bool, data [8]byte) []byte {
	var flags uint8
	if ack {
		flags = flagAck
	}
	b = appendFrameHeader(b, 8, framePing, flags, 0)
	return append(b, data[:]...)
}

func appendGoAway(b []byte, last uint32, code errCode, debug string) []byte {
	if len(debug) > maxGoAwayDebugKept {
		debug = debug[:maxGoAwayDebugKept]
	}
	b = appendFrameHeader(b, 8+len(debug), frameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, debug...)
}

type setting struct {
	id    uint16
	value uint32
}

func appendSettings(b []byte, list ...setting) []byte {
	b = appendFrameHeader(b, settingLen*len(list), frameSettings, 0, 0)
	for _, s := range list {
		b = binary.BigEndian.AppendUint16(b, s.id)
		b = binary.BigEndian.AppendUint32(b, s.value)
	}
	return b
}

// appendHeaderBlock writes an encoded header block as HEADERS and as many
// CONTINUATION frames as the peer's frame size asks for.
func appendHeaderBlock(b []byte, id uint32, block []byte, end bool, maxFrame int) []byte {
	var flags uint8
	if end {
		flags = flagEndStream
	}
	kind := frameHeaders
	for {
		n := min(len(block), maxFrame)
		if n == len(block) {
			flags |= flagEndHeaders
		}
		b = appendFrameHeader(b, n, kind, flags, id)
		b = append(b, block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return b
		}
		kind, flags = frameContinuation, 0
	}
}
