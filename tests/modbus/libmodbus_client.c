/* Reads 120 registers `requests` times from 127.0.0.1:`port`; prints the CPU seconds it took. */
#include <modbus/modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int count, char **argument) {
    if (count != 3) return 2;
    modbus_t *link = modbus_new_tcp("127.0.0.1", atoi(argument[1]));
    uint16_t words[120];
    if (modbus_connect(link)) return 1;
    clock_t began = clock();
    for (int i = atoi(argument[2]); i > 0; i--)
        if (modbus_read_registers(link, 0, 120, words) != 120) return 1;
    printf("%.6f\n", (double)(clock() - began) / CLOCKS_PER_SEC);
    return 0;
}
