/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/inspect-map.h"

#include <string.h>
#include <vmferry/error.h>

#define COLUMNS 64u
#define ROWS_MAX 32u
#define CELL 10u /* pixels of the SVG */
#define TITLE 28u

/* Neighbouring chunks that are shown as one; sums of their pages. */
typedef struct {
    uint64_t n_pages, here, below, zeroed;
} Cell;

typedef struct {
    VmfImageRam ram;
    uint64_t chunks_per_cell;
    unsigned n_cells;
    Cell *cells; /* owned */
} Map;

static bool fill(VmfImage *image, unsigned block, Map *map, GError **error)
{
    uint64_t n_chunks = vmf_image_n_chunks(image, block);

    if (!vmf_image_ram(image, 0, block, &map->ram, error))
        return false;
    map->chunks_per_cell = (n_chunks + COLUMNS * ROWS_MAX - 1) / (COLUMNS * ROWS_MAX);
    map->n_cells = (unsigned)((n_chunks + map->chunks_per_cell - 1) / map->chunks_per_cell);
    map->cells = g_new0(Cell, map->n_cells);
    for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
        Cell *cell = &map->cells[chunk / map->chunks_per_cell];
        VmfImageOccupancy occupancy;
        if (!vmf_image_occupancy(image, block, chunk, &occupancy, error))
            return false;
        cell->n_pages += occupancy.n_pages;
        cell->here += occupancy.here;
        cell->below += occupancy.below;
        cell->zeroed += occupancy.zeroed;
    }
    return true;
}

static void clear(Map *map)
{
    g_clear_pointer(&map->cells, g_free);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Map, clear)

/* ---- text -------------------------------------------------------------------------------------------------------- */

/* What has anything at all is never shown as nothing. */
static const char *shade(uint64_t part, uint64_t whole)
{
    static const char *const shades[] = {"·", "░", "▒", "▓", "█"};

    return shades[part == 0 ? 0 : part == whole ? 4 : 1 + part * 3 / whole];
}

static void print_cells(FILE *file, const Map *map, bool below)
{
    for (unsigned i = 0; i < map->n_cells; i++) {
        const Cell *cell = &map->cells[i];
        if (i % COLUMNS == 0)
            fprintf(file, "  %012" G_GINT64_MODIFIER "x  ",
                    map->ram.guest_address + i * map->chunks_per_cell * VMF_CHUNK_SIZE);
        fputs(shade(below ? cell->below : cell->here, cell->n_pages), file);
        if (i % COLUMNS == COLUMNS - 1 || i == map->n_cells - 1)
            fputc('\n', file);
    }
}

bool vmf_inspect_map_text(VmfImage *image, FILE *file, GError **error)
{
    VmfImageInfo info;

    vmf_image_info(image, 0, &info);
    for (unsigned block = 0; block < info.n_blocks; block++) {
        g_auto(Map) map = {0};
        if (!fill(image, block, &map, error))
            return false;
        fprintf(file, "RAM block %s: a character is %" G_GUINT64_FORMAT " MiB\n", map.ram.name,
                map.chunks_per_cell * (VMF_CHUNK_SIZE >> 20));
        print_cells(file, &map, false);
        if (vmf_image_n_layers(image) == 1)
            continue;
        fprintf(file, "RAM block %s, as far as it is in the parents:\n", map.ram.name);
        print_cells(file, &map, true);
    }
    return true;
}

/* ---- SVG --------------------------------------------------------------------------------------------------------- */

static void add_square(GString *svg, unsigned i, unsigned top, const char *class, double opacity)
{
    g_string_append_printf(svg, "<rect class=\"%s\" x=\"%u\" y=\"%u\" width=\"%u\" height=\"%u\" opacity=\"%.2f\"/>\n",
                           class, i % COLUMNS * CELL, top + i / COLUMNS * CELL, CELL - 1, CELL - 1, opacity);
}

static double opacity(uint64_t part, uint64_t whole)
{
    return 0.2 + 0.8 * (double)part / (double)whole;
}

/* Returns how far down the block goes. */
static unsigned add_block(GString *svg, const Map *map, unsigned top)
{
    g_autofree char *name = g_markup_escape_text(map->ram.name, -1);

    g_string_append_printf(
        svg, "<text x=\"0\" y=\"%u\">%s: %" G_GUINT64_FORMAT " MiB, a square is %" G_GUINT64_FORMAT " MiB</text>\n",
        top + TITLE - 10, name, map->ram.size >> 20, map->chunks_per_cell * (VMF_CHUNK_SIZE >> 20));
    top += TITLE;
    for (unsigned i = 0; i < map->n_cells; i++) {
        const Cell *cell = &map->cells[i];
        add_square(svg, i, top, "empty", 1);
        if (cell->below > 0)
            add_square(svg, i, top, "below", opacity(cell->below, cell->n_pages));
        if (cell->here > 0)
            add_square(svg, i, top, "here", opacity(cell->here, cell->n_pages));
        else if (cell->zeroed > 0)
            add_square(svg, i, top, "zeroed", opacity(cell->zeroed, cell->n_pages));
    }
    return top + (map->n_cells + COLUMNS - 1) / COLUMNS * CELL;
}

static char *svg_of(const GString *body, const VmfImageInfo *info, unsigned height)
{
    g_autofree char *uri = g_markup_escape_text(info->uri, -1);

    return g_strdup_printf(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%u\" height=\"%u\" font-family=\"sans-serif\" "
        "font-size=\"12\">\n"
        "<title>%s</title>\n<style>.empty{fill:#eeeeee}.here{fill:#1f5fa8}.below{fill:#8a8a8a}.zeroed{fill:#f0b429}"
        "text{fill:#444444}</style>\n<text x=\"0\" y=\"14\">%s</text>\n"
        "<text x=\"0\" y=\"30\">blue: pages in this image; grey: in its parents; yellow: zeros that it has over pages "
        "of its parents</text>\n%s</svg>\n",
        COLUMNS * CELL, height, uri, uri, body->str);
}

bool vmf_inspect_map_svg(VmfImage *image, const char *path, GError **error)
{
    g_autoptr(GString) body = g_string_new(NULL);
    g_autoptr(GError) failed = NULL;
    unsigned top = 36;
    VmfImageInfo info;

    vmf_image_info(image, 0, &info);
    for (unsigned block = 0; block < info.n_blocks; block++) {
        g_auto(Map) map = {0};
        if (!fill(image, block, &map, error))
            return false;
        top = add_block(body, &map, top);
    }
    g_autofree char *svg = svg_of(body, &info, top + 4);
    if (g_file_set_contents(path, svg, -1, &failed))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s", failed->message);
    return false;
}
