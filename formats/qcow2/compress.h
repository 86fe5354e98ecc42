/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* compress.c: compressed clusters. */
#pragma once

#include "state.h"

/* Reads a compressed cluster through the little cache of decoded ones. Lock not held. */
coroutine_fn int qcow2_co_read_compressed(struct qcow2 *s, struct qcow2_entry entry, uint64_t offset, uint64_t length,
                                          const struct iovec *iov, int iov_count);
/* Decodes one cluster: 0 or -EIO. Pure. */
int qcow2_decompress(enum qcow2_compression how, const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length);
/* An entry says in which sectors a compressed cluster lies, not how long it is: its bytes, at the beginning of these,
 * or 0 if they do not tell. `out` has room for a cluster. Pure. */
size_t qcow2_compressed_length(enum qcow2_compression how, const uint8_t *in, size_t in_length, uint8_t *out,
                               size_t out_length);
/* Encodes one: its bytes, or 0 if they are more than out_length, or would be hardly fewer. Pure. */
size_t qcow2_compress(enum qcow2_compression how, const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length);
void qcow2_decoded_forget(struct qcow2 *s, uint64_t guest_cluster); /* its entry changes. Lock held */
void qcow2_decoded_free(struct qcow2 *s);
