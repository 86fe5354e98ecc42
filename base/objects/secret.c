/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * -object secret: a password or key from the command line (data) or a file, raw or in base64; with keyid it is
 * encrypted by AES-256 in CBC mode with PKCS#7 padding (NIST SP 800-38A, RFC 5652 section 6.3) under another secret,
 * the master key, of 32 bytes. Invariant: its bytes are nowhere but in struct locked, which wipes them; data is taken
 * out of the options and wiped there.
 */
#include <objects/secret.h>

#include "base64.h"
#include "locked.h"

#include <objects/object.h>

#include <base/compiler.h>
#include <errno.h>
#include <fcntl.h>
#include <nettle/aes.h>
#include <nettle/cbc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX (16u << 20)
#define KEY_LENGTH AES256_KEY_SIZE
#define IV_LENGTH AES_BLOCK_SIZE

struct secret {
    struct locked bytes;
};

enum { FORMAT_RAW, FORMAT_BASE64 };
static const char *const formats[] = { "raw", "base64", NULL };

static const struct opt_desc options[] = {
    { .name = "data", .type = OPT_STRING, .help = "the secret itself; better in a file" },
    { .name = "file", .type = OPT_STRING, .help = "file that holds the secret, and nothing else" },
    { .name = "format", .type = OPT_ENUM, .values = formats, .def = "raw", .help = "raw or base64" },
    { .name = "iv", .type = OPT_STRING, .help = "initialization vector of the encryption, in base64" },
    { .name = "keyid", .type = OPT_STRING, .help = "id of the secret that is the key of this one" },
    { 0 },
};

static int no_memory(struct error **errp) { return error_set(errp, -ENOMEM, "not enough memory for a secret"); }

/* ---- where it comes from ---- */

static int read_all(int fd, const char *path, struct locked *out, struct error **errp)
{
    for (;;) {
        uint8_t *at = locked_reserve(out, 4096);
        if (!at)
            return no_memory(errp);
        ssize_t got = read(fd, at, 4096);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set_errno(errp, -errno, "Unable to read %s: Error reading file “%s”", path, path);
        out->length += (size_t)got;
        out->data[out->length] = 0;
        if (!got)
            return 0;
        if (out->length > FILE_MAX)
            return error_set(errp, -EFBIG, "Unable to read %s: it is larger than %u MiB", path, FILE_MAX >> 20);
    }
}

static int read_file(const char *path, struct locked *out, struct error **errp)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return error_set_errno(errp, -errno, "Unable to read %s: Failed to open file “%s”", path, path);
    int err = read_all(fd, path, out, errp);
    close(fd);
    return err;
}

/* As given: still in base64, still encrypted. */
static int load(struct opts *opts, struct locked *out, struct error **errp)
{
    const char *checked, *path = NULL;
    int err = 0, given = opts_string(opts, options, "data", &checked, errp);
    if (given < 0 || opts_string(opts, options, "file", &path, errp) < 0)
        return -EINVAL;
    if (given && path)
        return error_set(errp, -EINVAL, "'file' and 'data' are mutually exclusive");
    if (!given && !path)
        return error_set(errp, -EINVAL, "Either 'file' or 'data' must be provided");
    if (path)
        return read_file(path, out, errp);
    char *data = opts_take(opts, "data");
    if (!locked_append(out, data, strlen(data)))
        err = no_memory(errp);
    explicit_bzero(data, strlen(data));
    free(data);
    return err;
}

/* ---- encryption ---- */

static int read_iv(const char *text, uint8_t iv[IV_LENGTH], struct error **errp)
{
    struct locked bytes = { 0 };
    if (!text)
        return error_set(errp, -EINVAL, "IV is required to decrypt secret");
    int err = base64_decode((const uint8_t *)text, strlen(text), &bytes, errp);
    if (!err && bytes.length != IV_LENGTH)
        err = error_set(errp, -EINVAL, "IV should be %u bytes in length not %zu", IV_LENGTH, bytes.length);
    if (!err)
        memcpy(iv, bytes.data, IV_LENGTH);
    locked_free(&bytes);
    return err;
}

/* Takes the padding off. QEMU takes none (0) for right, too. */
static int unpad(struct locked *bytes, struct error **errp)
{
    unsigned padding = bytes->length ? bytes->data[bytes->length - 1] : 0;
    if (padding > AES_BLOCK_SIZE)
        return error_set(errp, -EINVAL, "Incorrect number of padding bytes (%u) found on decrypted data", padding);
    explicit_bzero(bytes->data + bytes->length - padding, padding);
    bytes->length -= padding;
    return 0;
}

static int decrypt(const struct secret *key, uint8_t iv[IV_LENGTH], struct locked *bytes, struct error **errp)
{
    struct aes256_ctx aes;
    struct locked plain = { 0 };
    if (bytes->length % AES_BLOCK_SIZE)
        return error_set(errp, -EINVAL, "Length %zu must be a multiple of block size %u", bytes->length,
                         AES_BLOCK_SIZE);
    if (!locked_reserve(&plain, bytes->length))
        return no_memory(errp);
    aes256_set_decrypt_key(&aes, key->bytes.data);
    cbc_decrypt(&aes, (nettle_cipher_func *)aes256_decrypt, AES_BLOCK_SIZE, iv, bytes->length, plain.data, bytes->data);
    explicit_bzero(&aes, sizeof(aes));
    plain.length = bytes->length;
    int err = unpad(&plain, errp);
    locked_free(bytes);
    *bytes = plain;
    return err;
}

static int decode_base64(struct locked *bytes, struct error **errp)
{
    struct locked decoded = { 0 };
    int err = base64_decode(bytes->data, bytes->length, &decoded, errp);
    locked_free(bytes);
    *bytes = decoded;
    return err;
}

/* The order of the checks is QEMU's: key, initialization vector, then the text itself. */
static int decode(struct locked *bytes, int format, const char *keyid, const char *iv_text, struct error **errp)
{
    uint8_t iv[IV_LENGTH] = { 0 };
    const struct secret *key = keyid ? secret_find(keyid, errp) : NULL;
    int err = 0;
    if (keyid && !key)
        return -ENOENT;
    if (key && key->bytes.length != KEY_LENGTH)
        return error_set(errp, -EINVAL, "Key should be %u bytes in length", KEY_LENGTH);
    if (key)
        err = read_iv(iv_text, iv, errp);
    if (!err && format == FORMAT_BASE64)
        err = decode_base64(bytes, errp);
    if (!err && key)
        err = decrypt(key, iv, bytes, errp);
    return err;
}

/* ---- the object ---- */

static void secret_free(void *state)
{
    struct secret *secret = state;
    locked_free(&secret->bytes);
    free(secret);
}

static int secret_create(const char *id, struct opts *opts, void **state, struct error **errp)
{
    struct locked bytes = { 0 };
    const char *keyid = NULL, *iv = NULL;
    int format = FORMAT_RAW;
    (void)id;
    if (opts_enum(opts, options, "format", &format, errp) < 0 ||
        opts_string(opts, options, "keyid", &keyid, errp) < 0 || opts_string(opts, options, "iv", &iv, errp) < 0)
        return -EINVAL;
    int err = load(opts, &bytes, errp);
    if (!err)
        err = decode(&bytes, format, keyid, iv, errp);
    if (err) {
        locked_free(&bytes);
        return err;
    }
    struct secret *secret = xcalloc(1, sizeof(*secret));
    secret->bytes = bytes;
    *state = secret;
    return 0;
}

static struct object_kind kind = {
    .name = "secret",
    .options = options,
    .create = secret_create,
    .free = secret_free,
};
OBJECT_KIND(kind)

/* ---- for those who need one ---- */

const struct secret *secret_find(const char *id, struct error **errp)
{
    const struct secret *secret = object_find(&kind, id);
    if (secret)
        return secret;
    const char *other = object_kind_of(id);
    if (other)
        error_set(errp, -EINVAL, "Object with id '%s' is not a secret but of type '%s'", id, other);
    else
        error_set(errp, -ENOENT, "No secret with id '%s'", id);
    return NULL;
}

/* RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF; and, as in QEMU, no zero. */
static bool is_utf8(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        unsigned more = *at < 0x80                  ? 0
                        : *at >= 0xc2 && *at < 0xe0 ? 1
                        : *at >> 4 == 0xe           ? 2
                        : *at >= 0xf0 && *at < 0xf5 ? 3
                                                    : 4;
        if (!*at || more == 4 || (size_t)(end - at) <= more)
            return false;
        uint32_t code = more ? *at & (0x3fu >> more) : *at;
        for (unsigned i = 1; i <= more; i++) {
            if (at[i] >> 6 != 2)
                return false;
            code = code << 6 | (at[i] & 0x3fu);
        }
        if ((more == 2 && (code < 0x800 || code >> 11 == 0x1b)) || (more == 3 && (code < 0x10000 || code > 0x10ffff)))
            return false;
        at += more + 1;
    }
    return true;
}

const struct secret *secret_find_text(const char *id, struct error **errp)
{
    const struct secret *secret = secret_find(id, errp);
    if (!secret)
        return NULL;
    const uint8_t *bytes = secret->bytes.data;
    if (is_utf8(bytes, bytes + secret->bytes.length))
        return secret;
    error_set(errp, -EINVAL, "Data from secret %s is not valid UTF-8", id);
    return NULL;
}

const uint8_t *secret_bytes(const struct secret *secret, size_t *length)
{
    *length = secret->bytes.length;
    return secret->bytes.data;
}
