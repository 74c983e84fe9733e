# Writes a JSON document as lines of path, tab, value: links/0/id<TAB>tap1. A break in a value becomes a
# space, so that one value stays one line. Exits 1 when the text is not JSON.
# The members of public_keys are told apart by their place, since a key's name may be anything.

function fail() { failed = 1; exit 1 }

function skip() { sub(/^[ \t\r\n]+/, "", text) }

function take(expression,   token) {
    if (!match(text, expression) || RSTART != 1) fail()
    token = substr(text, 1, RLENGTH)
    text = substr(text, RLENGTH + 1)
    skip()
    return token
}

function hex(digits,   i, n) {
    n = 0
    digits = tolower(digits)
    for (i = 1; i <= length(digits); i++) n = n * 16 + index("0123456789abcdef", substr(digits, i, 1)) - 1
    return n
}

function utf8(n) {
    if (n < 32 || n == 127) return " "
    if (n < 128) return sprintf("%c", n)
    if (n < 2048) return sprintf("%c%c", 192 + int(n / 64), 128 + n % 64)
    if (n < 65536) return sprintf("%c%c%c", 224 + int(n / 4096), 128 + int(n / 64) % 64, 128 + n % 64)
    return sprintf("%c%c%c%c", 240 + int(n / 262144), 128 + int(n / 4096) % 64, 128 + int(n / 64) % 64, 128 + n % 64)
}

function unquote(token,   out, at, c, n, low) {
    token = substr(token, 2, length(token) - 2)
    out = ""
    while ((at = index(token, "\\")) > 0) {
        out = out substr(token, 1, at - 1)
        c = substr(token, at + 1, 1)
        if (c == "u") {
            n = hex(substr(token, at + 2, 4))
            token = substr(token, at + 6)
            if (n >= 55296 && n < 56320 && substr(token, 1, 2) == "\\u") {
                low = hex(substr(token, 3, 4))
                token = substr(token, 7)
                n = 65536 + (n - 55296) * 1024 + low - 56320
            }
            out = out utf8(n)
        } else {
            out = out (index("bfnrt", c) ? " " : c)
            token = substr(token, at + 2)
        }
    }
    out = out token
    gsub(/\177/, " ", out)
    return out
}

function value(path,   key, i, separator) {
    separator = path == "" ? "" : "/"
    if (text ~ /^\{/) {
        take("^[{]")
        for (i = 0; text !~ /^\}/; i++) {
            if (i > 0) take("^,")
            key = unquote(take("^\"([^\"\\\\]|\\\\.)*\""))
            take("^:")
            value(path separator (path == "public_keys" ? i : key))
        }
        take("^[}]")
    } else if (text ~ /^\[/) {
        take("^[[]")
        for (i = 0; text !~ /^\]/; i++) {
            if (i > 0) take("^,")
            value(path separator i)
        }
        take("^[]]")
    } else if (text ~ /^"/) {
        print path "\t" unquote(take("^\"([^\"\\\\]|\\\\.)*\""))
    } else {
        print path "\t" take("^[-+.a-zA-Z0-9]+")
    }
}

{ text = text $0 "\n" }

END {
    if (failed) exit 1
    skip()
    value("")
    if (text != "") exit 1
}
