"""What is packed or compiled into one program."""

import work


def main():
    work.spin()


if __name__ == "__main__":
    main()
