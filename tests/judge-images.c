/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the engine says of images, for tests that ask another reader too. Each line of stdin is the URI of an image and those of files
 * that may be its parents, separated by tabs. Each is answered with one line: a JSON list of the ids of all that is wrong, with the parents
 * it stands on and every page looked at; an empty one if all is well.
 */
#include <stdio.h>
#include <stdlib.h>

#include <vmferry/error.h>

#include "ram/image-verify.h"

static void say(bool *first, int code)
{
    g_autoptr(GError) error = g_error_new_literal(VMF_ERROR, code, "");

    printf("%s\"%s\"", *first ? "" : ", ", vmf_error_id(error));
    *first = false;
}

static void judge(const char *uri, const char *const *parents, bool *first)
{
    const VmfStorageOptions storage = {.mode = VMF_STORAGE_READ, .buffered = true, .backend = "threads"};
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, parents, &storage, &error);
    VmfImageVerifyResult result = {0};

    if (chain) {
        VmfImageVerifyOptions options = {
            .n_layers = vmf_image_chain_n_layers(chain),
            .n_threads = 1,
            .max_listed = 64,
        };

        vmf_image_chain_verify(chain, &options, &result, &error);
        for (unsigned i = 0; result.damage && i < result.damage->len; i++)
            say(first, g_array_index(result.damage, VmfImageDamage, i).code);
        vmf_image_verify_result_clear(&result);
    }
    if (error)
        say(first, error->code);
}

int main(void)
{
    char *line = NULL;
    size_t size = 0;

    while (getline(&line, &size, stdin) > 0) {
        g_auto(GStrv) uris = g_strsplit(g_strchomp(line), "\t", -1);
        bool first = true;

        printf("[");
        judge(uris[0], (const char *const *)uris + 1, &first);
        printf("]\n");
        fflush(stdout);
    }
    free(line);
    return 0;
}
