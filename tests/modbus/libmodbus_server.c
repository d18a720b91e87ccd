/* An independent Modbus TCP server: libmodbus, one client after another, words[i] as given on stdin.
 * Prints its port, then serves until killed. Units are not told apart. */
#include <errno.h>
#include <modbus/modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <unistd.h>

int main(void) {
    modbus_t *link = modbus_new_tcp("127.0.0.1", 0);
    modbus_mapping_t *map = modbus_mapping_new(1000, 1000, 10000, 10000);
    unsigned address, word;
    while (scanf("%u %u", &address, &word) == 2) {
        map->tab_registers[address] = map->tab_input_registers[address] = word;
        if (address < 1000) map->tab_bits[address] = map->tab_input_bits[address] = word & 1;
    }
    /* libmodbus cannot listen on a port of the system's choice, so the socket is made here */
    int server = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof name;
    if (bind(server, (struct sockaddr *)&name, size) || listen(server, 5) ||
        getsockname(server, (struct sockaddr *)&name, &size)) {
        perror("listen");
        return 1;
    }
    printf("%d\n", ntohs(name.sin_port));
    fflush(stdout);
    for (;;) {
        uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
        int length;
        if (modbus_tcp_accept(link, &server) < 0) return 1;
        while ((length = modbus_receive(link, query)) >= 0)
            if (length > 0) modbus_reply(link, query, length, map);
        modbus_close(link);
    }
}
