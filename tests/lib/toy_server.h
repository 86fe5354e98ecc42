/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A server for tests, on a Unix socket, in a thread of its own: a disk in memory with a volatile write cache. It can
 * hang, cut connections, die and come back, with or without what was not flushed. And the driver `toy`, which speaks
 * its protocol through block/connection.h: options path, reconnect-delay, open-timeout, request-timeout (milliseconds
 * here), resend, same-server.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define TOY_BYTES 65536u

struct toy_server {
    char *path;
    pthread_t thread;
    int listener, wake[2];
    atomic_bool stop;
    atomic_bool hangs;     /* reads requests, and answers none until it ends */
    atomic_uint slow_ms;   /* what each request takes */
    atomic_uint cut_every; /* the connection, after so many requests; 0: never */
    atomic_bool hangs_up;  /* as soon as somebody comes */
    atomic_bool nonsense;  /* the next answer names a tag that nobody has */
    atomic_bool eager;     /* the next write is answered before it is read */
    atomic_uint served, accepted;
    pthread_mutex_t lock; /* data */
    uint8_t data[TOY_BYTES], durable[TOY_BYTES];
};

extern atomic_uint toy_sent;          /* requests, by the driver */
extern atomic_bool toy_waits_for_end; /* its handshake lasts until the server hangs up */

/* Makes it listen; again after toy_server_stop(), with `lose`: without what was not flushed. */
void toy_server_start(struct toy_server *server, bool lose);
void toy_server_stop(struct toy_server *server);
