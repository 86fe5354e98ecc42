# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# For the tests of tests/run itself: a small tree in ./tree with our runner and no tests, which becomes the working folder.
# On top of test.sh.
#
#   script NAME LINE...           makes tests/NAME, a bash script of these lines
#   expect STATUS SUMMARY ARG...  runs tests/run ARG... there; its output is in $output
#   says TEXT                     the output has it
# shellcheck source=tests/lib/test.sh
. "$(dirname "${BASH_SOURCE[0]}")/test.sh"

unset VMM IMG_TOOL VMM_BUILD
export TMPDIR=$TEST_TMP/tmp STATE=$TEST_TMP # where the runs within work; what the scripts there remember
mkdir -p "$TMPDIR" tree/tests/{lib,unit,cli,format,guest,fuzz,bed}
cp "$test_dir"/../lib/*.{py,sh} tree/tests/lib/
cp "$test_dir"/../run tree/tests/
printf '#!/bin/sh\nexit 0\n' >tree/tests/install
chmod +x tree/tests/install
cd tree

script()
{
    local name=$1
    shift
    { echo '#!/bin/bash'; printf '%s\n' "$@"; } >"tests/$name"
    chmod +x "tests/$name"
}

expect()
{
    local status=$1 summary=$2
    shift 2
    SEED=7 check_status "$status" tests/run "$@"
    check_same "$summary" "$(tail -n 1 <<<"$output")" "last line of tests/run $*"
}

says()
{
    grep -qF -- "$1" <<<"$output" || fail "does not say '$1':"$'\n'"$output"
}
